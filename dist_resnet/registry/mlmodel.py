"""MLflow's own files of a package: MLmodel, requirements.txt and python_env.yaml."""

import platform

import mlflow.pyfunc
import torch
from mlflow.models import Model as MlflowModel
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType

from dist_resnet.registry import package, predictor
from dist_resnet.registry.package import Package


def write_mlmodel(made: Package) -> None:
    """Adds MLflow's files to a package. Its pytorch flavor loads the exported program, pyfunc rebuilds the network."""
    described = MlflowModel()
    described.add_flavor(
        "pytorch",
        model_data=package.DATA,
        pytorch_version=str(torch.__version__),
        code=None,
        serialization_format="pt2",
    )
    described.signature = ModelSignature(
        # Any: bytes, base64 text or pixels; the predictor checks it.
        inputs=Schema([ColSpec(AnyType(), "image")]),
        params=ParamSchema(
            [
                ParamSpec("top_k", DataType.long, predictor.TOP_K),
                ParamSpec("exif_rotation", DataType.boolean, predictor.EXIF_ROTATION),
            ]
        ),
    )
    mlflow.pyfunc.add_to_model(
        described,
        loader_module=made.loader_module,
        data=package.DATA,
        code=package.CODE,
        python_env={"virtualenv": "python_env.yaml"},
    )
    (made.folder / "requirements.txt").write_text("\n".join(package.requirements()) + "\n")
    environment = (
        f"python: {platform.python_version()}\nbuild_dependencies: [pip]\ndependencies: [-r requirements.txt]\n"
    )
    (made.folder / "python_env.yaml").write_text(environment)
    described.save(str(made.folder / "MLmodel"))
