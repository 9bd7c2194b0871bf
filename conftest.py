"""What examples in docstrings find: a run as if trained, and the registry that has its model."""

import io
from pathlib import Path
from typing import Any

import pytest

_EXAMPLES = ("launch.evaluate.evaluate", "registry.pull.pull", "registry.pull.pull_predictor")


@pytest.fixture(autouse=True)
def _give_examples_a_run(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    if isinstance(request.node, pytest.DoctestItem) and request.node.name.removeprefix("dist_resnet.") in _EXAMPLES:
        doctest_namespace |= request.getfixturevalue("published_run")


@pytest.fixture(scope="session")
def published_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`run`, a run's directory; `registry`, where its model is version 1 of preact-resnet8; `jpeg`, an image file."""
    # Late, for tests of other files go without torch and MLflow.
    from PIL import Image
    from registry.conftest import trained

    from dist_resnet import Augment, Data, Evaluation, Execution, Model, Recipe
    from dist_resnet.data.prepare.demo import write_demo
    from dist_resnet.launch.plan import prepare
    from dist_resnet.registry.publish import publish_run
    from dist_resnet.train import checkpoint

    folder = tmp_path_factory.mktemp("examples")
    train, validation = write_demo(str(folder), size=32, num_classes=4, train_images=32, validation_images=16, seed=0)
    recipe = Recipe(
        model=Model(depth=8, num_classes=4),
        data=Data(train=train, validation=validation, dataset="cifar10"),
        augment=Augment(kind="pad", size=32),
        evaluation=Evaluation(crops=(32,), shorter_sides=(32,)),
        global_batch=32,
    )
    execution = Execution(device="cpu", storage=str(folder / "runs"))
    plan = prepare(recipe, execution, job="example")
    plan.claim()
    checkpoint.save(plan.directory, checkpoint.Snapshot.of(trained(recipe, execution)))
    registry, file = f"sqlite:///{Path(folder, 'mlflow.db')}", io.BytesIO()
    publish_run(plan.directory.uri, tracking_uri=registry, name="preact-resnet8")
    Image.new("RGB", (40, 32)).save(file, "jpeg")
    return {"run": plan.directory.uri, "registry": registry, "jpeg": file.getvalue()}
