"""Classifies images with a trained model, and writes the classes of each image to a Parquet or CSV file.

    python jobs/predict.py --model ~/dist_resnet/NAME --images ~/photos --output predictions.parquet
    python jobs/predict.py --model models:/preact-resnet200@champion --images "s3://bucket/new/*.jpg" \
        --output s3://bucket/predictions.csv --top-k 1
    python jobs/predict.py --model ~/dist_resnet/NAME --images "/data/imagenet/validation-*.parquet" \
        --output predictions.parquet --no-exif-rotation

--images takes folders with their subfolders, globs and single files: images of any format, or Parquet files with a
column of images. Labels are not needed. The output has a row for each image, in the order of the paths: `path` (for a
row of a Parquet file FILE#ROW, counted from 0), `classes`, `names` and `probabilities` of the --top-k most probable
classes, and `error`, which is empty unless the image cannot be read. In CSV, each rank has its own columns: `class_1`,
`name_1`, `probability_1` and so on. The answers are those of the served model.

Runs on a Ray cluster if there is one, otherwise on this machine's GPUs or cores. To continue a job that was stopped or
killed, run the same command again: finished blocks are in OUTPUT.parts until OUTPUT is written.
"""

from dataclasses import dataclass
from typing import Literal

from dist_resnet import cli, logs
from dist_resnet.recipe import Decode


@dataclass(frozen=True, kw_only=True)
class Options:
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


def main() -> None:
    """Predicts, and prints how many images the output has and how many of them could not be read."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    # Imported late, so that --help does not wait for torch and Ray.
    from dist_resnet.launch.ray import predict

    with cli.bad_input_exits():
        found = predict.predict(predict.Options(**vars(options)))
    print(f"{found.output}: {found.images} images")
    if found.unreadable:
        print(f"{found.unreadable} of them could not be read; the first: {found.first_error}")


if __name__ == "__main__":
    cli.run(main, advice="run the same command again to predict the remaining images")
