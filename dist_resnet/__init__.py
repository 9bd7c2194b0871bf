"""Training of pre-activation ResNets at ImageNet scale on Ray (He et al., arXiv:1603.05027).

What is listed here is for programs and notebooks; `run_training` is what every training job calls, too. A recipe says
what is computed, an execution where and how fast:

>>> from dist_resnet import (
...     Augment, Cache, Checkpoints, Data, Evaluation, Execution, Initial, Model, Optimizer, Performance, Recipe,
...     Recovery, Schedule, Tracking, build_model,
... )
>>> recipe = Recipe(
...     model=Model(depth=164, num_classes=10, shortcut="identity", placement="full_preactivation"),
...     data=Data(train="cifar10/train-*.parquet", validation="cifar10/test-*.parquet", dataset="cifar10"),
...     initial=Initial(weights="trained.safetensors", freeze="stem"),
...     augment=Augment(kind="pad", size=32),
...     optimizer=Optimizer(momentum=0.9, weight_decay=1e-4),
...     schedule=Schedule(learning_rate=0.1, drops=(0.5, 0.75)),
...     evaluation=Evaluation(crops=(32,), shorter_sides=(32,)),
...     epochs=164,
...     global_batch=128,
...     ghost_batch=64,
... )
>>> execution = Execution(
...     workers=2,
...     storage="s3://bucket/runs",
...     performance=Performance(cuda_graphs=False),
...     checkpoints=Checkpoints(every=1000, keep=2),
...     recovery=Recovery(max_failures=3),
...     cache=Cache(folder="/mnt/cache", gigabytes=50),
...     tracking=Tracking(uri="https://mlflow.example.org"),
... )
>>> recipe.num_ghost_batches, execution.worker_range
(2, (2, 2))
>>> sum(weights.numel() for weights in build_model(recipe.model).parameters())
1703258

Importing this imports neither torch nor Ray: each name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_resnet.launch.demo import make_demo
    from dist_resnet.launch.evaluate import Evaluated, evaluate
    from dist_resnet.launch.training import run_training
    from dist_resnet.model import build_model
    from dist_resnet.recipe import (
        Augment,
        Cache,
        Checkpoints,
        Data,
        Evaluation,
        Execution,
        Initial,
        Model,
        Optimizer,
        Performance,
        Recipe,
        Recovery,
        Schedule,
        Tracking,
    )
    from dist_resnet.registry.pull import pull, pull_predictor

__version__ = "0.1.0"

__all__ = [
    "Augment",
    "Cache",
    "Checkpoints",
    "Data",
    "Evaluated",
    "Evaluation",
    "Execution",
    "Initial",
    "Model",
    "Optimizer",
    "Performance",
    "Recipe",
    "Recovery",
    "Schedule",
    "Tracking",
    "__version__",
    "build_model",
    "evaluate",
    "make_demo",
    "pull",
    "pull_predictor",
    "run_training",
]

# Where each name is, but for what the recipe's file has.
_HOMES = {
    "Evaluated": "launch.evaluate",
    "build_model": "model",
    "evaluate": "launch.evaluate",
    "make_demo": "launch.demo",
    "pull": "registry.pull",
    "pull_predictor": "registry.pull",
    "run_training": "launch.training",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'recipe')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
