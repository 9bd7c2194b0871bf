"""The entry point through which MLflow loads and serves a package; copied into every package."""

from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from dist_resnet.registry.predictor import Predictor


class Served(Predictor):
    """A predictor whose errors about a request reach the client with status 400."""

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """As `Predictor.predict`. Raises MlflowException instead of ValueError."""
        try:
            return super().predict(model_input, params)
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


def _load_pyfunc(folder: str) -> Served:
    return Served(Path(folder))
