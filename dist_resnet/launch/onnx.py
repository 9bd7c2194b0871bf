"""A network as an ONNX file: float32 images [N, 3, size, size] -> logits, checked by onnxruntime."""

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_OPSET = 23
_IMAGES, _LOGITS = "images", "logits"
# Of the largest logit: the two programs sum in other orders.
_TOLERANCE = 1e-4


def write_onnx(network: torch.nn.Module, path: Path, *, size: int, about: dict[str, Any]) -> str:
    """Writes a network in evaluation mode; returns how near onnxruntime's logits are, for 1 and for 5 random images.

    `about` becomes the file's metadata. Raises ValueError if a package is missing or the logits differ.
    """
    _check_packages()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own use of what torch deprecates
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            opset_version=_OPSET,
            input_names=[_IMAGES],
            output_names=[_LOGITS],
            dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    program.save(path)
    return f"opset {_OPSET}, {_compare(network, path, size)}"


def _check_packages() -> None:
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"ONNX files need the package {name}: uv sync --extra onnx") from error


@torch.no_grad()
def _compare(network: torch.nn.Module, path: Path, size: int) -> str:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for number in (1, 5):
        images = torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(number))
        ours = network(images)
        theirs = torch.from_numpy(session.run([_LOGITS], {_IMAGES: images.numpy()})[0])
        worst = max(worst, ((theirs - ours).abs().max() / ours.abs().max()).item())
    if not worst <= _TOLERANCE:
        raise ValueError(
            f"onnxruntime {onnxruntime.__version__} computes other logits from the ONNX file, by {worst:.1e} of the "
            f"largest, beyond {_TOLERANCE:.0e}; the file is not kept"
        )
    return f"onnxruntime {onnxruntime.__version__}'s logits differ by at most {worst:.1e} of the largest"
