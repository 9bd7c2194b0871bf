"""Writes a trained model as a file of torchvision, timm or ONNX, or as one safetensors file.

    python jobs/export_model.py --run ~/dist_resnet/NAME --format onnx --target model.onnx
    python jobs/export_model.py --model models:/preact-resnet152@champion --format timm --target resnetv2.safetensors
    python jobs/export_model.py --run s3://bucket/runs/NAME --format torchvision --target s3://bucket/resnet50.safetensors

The file is checked before it gets its name: weights are read back, ONNX is run by onnxruntime (`uv sync --extra onnx`)
and compared with the network's logits. torchvision has the original placement at depth 50, 101 and 152, timm full
pre-activation. --format safetensors also holds the network and its class names; --initial.weights reads all but ONNX.
"""

import json
from dataclasses import dataclass
from typing import Literal

from dist_resnet import cli, logs


@dataclass(frozen=True, kw_only=True)
class Options:
    format: Literal["safetensors", "torchvision", "timm", "onnx"]
    """Program that the file is for. safetensors: this project's names."""
    target: str
    """File to create, a local path or URI of an object store, which must not exist. It ends in .safetensors, .pth
    (torchvision and timm) or .onnx."""
    run: str | None = None
    """The run's directory, STORAGE/NAME, whose newest checkpoint is exported, or one of its checkpoints. Unset: --model
    is exported."""
    model: str | None = None
    """A registered model instead of a run: models:/NAME/VERSION or models:/NAME@ALIAS. Unset: --run is exported."""
    tracking_uri: str | None = None
    """MLflow tracking server or store of --model. Unset: MLFLOW_TRACKING_URI."""

    def __post_init__(self) -> None:
        cli.run_or_model(self.run, self.model)


def main() -> None:
    """Exports the model and prints what the file is and how its images are prepared, as JSON."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    # Imported late, so that --help does not wait for torch.
    from dist_resnet.launch.export import export

    with cli.bad_input_exits():
        found = export(
            cli.run_or_model(options.run, options.model),
            options.target,
            options.format,
            tracking_uri=options.tracking_uri,
        )
    print(json.dumps({"file": found.uri, "bytes": found.size_bytes, "checked": found.checked} | found.about, indent=2))


if __name__ == "__main__":
    cli.run(main)
