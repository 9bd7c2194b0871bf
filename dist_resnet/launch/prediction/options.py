"""What is predicted, with what, and where."""

from dataclasses import dataclass
from typing import Literal

from dist_resnet.recipe import Decode


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of jobs/predict.py."""

    model: str
    """A run's directory STORAGE/NAME, one of its checkpoints STORAGE/NAME/checkpoints/step_00001000, or a registered
    model models:/NAME/VERSION or models:/NAME@ALIAS."""
    images: tuple[str, ...]
    """Folders, globs or files: local paths or URIs of object stores."""
    output: str
    """File to write, .parquet or .csv: a local path or URI of an object store. It must not exist."""
    top_k: int = 5
    """Classes for each image, the most probable first."""
    exif_rotation: bool = True
    """Turn photographs upright by their EXIF data, as a served model does. Training and evaluation do not."""
    workers: int | None = None
    """Workers. Unset: one for each GPU of the cluster or machine, or one for each core if there is no GPU."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """auto: a GPU for each worker if there are enough."""
    batch: int = 64
    """Images per forward pass."""
    decode_on: Decode = "auto"
    """What decodes images. auto: DALI on the worker's device, or Pillow if DALI is not installed. gpu and cpu: DALI
    there. pillow: as a served model, to the same probabilities; DALI's differ by rounding."""
    tracking_uri: str | None = None
    """The registry's MLflow server. Unset: MLFLOW_TRACKING_URI."""

    def __post_init__(self) -> None:
        for name in ("top_k", "batch", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
