"""A model as a folder that MLflow, torch and this project each can load, without pickle in it.

data/model.safetensors    weights and BN statistics
data/recipe.json          the recipe that trained them; its `model` says which network it is
data/classes.json         class names, in the order of the logits
data/preprocessing.json   crop, shorter side, mean and deviation
data/model.pt2            the network as a torch.export program: float32 [N, 3, H, W] -> logits, on the CPU
code/dist_resnet_HASH     the modules that rebuild the network and predict, under a name of their own; beside them
                          empty files `__pycache__`, so that Python writes no byte code there and runs none
MLmodel, requirements.txt, python_env.yaml    MLflow's own
manifest.json             sha256 of every other file
"""

import hashlib
import importlib.metadata
import json
import re
import warnings
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors.torch
import torch

from dist_resnet.data.datasets import DATASETS
from dist_resnet.recipe import Recipe
from dist_resnet.registry import predictor
from dist_resnet.storage.uri import without_credentials

DATA, CODE, MANIFEST, PROGRAM = "data", "code", "manifest.json", "model.pt2"
# Where a plain file has this name, Python neither makes the folder nor looks into it.
_BYTE_CODE = "__pycache__"
# Of macOS, Windows and NFS.
_LEFT_BEHIND = re.compile(r"(\.DS_Store|\._.+|\.nfs.+|Thumbs\.db|desktop\.ini)")
REQUIREMENTS = ("mlflow", "torch", "safetensors", "pillow", "numpy")
_MODULES = (
    "recipe.py",
    "data/datasets.py",
    "data/image/headers.py",
    "data/image/pixels.py",
    "data/image/png.py",
    "data/input/augment.py",
    "data/input/normalize.py",
    "model/__init__.py",
    "model/depths.py",
    "model/head.py",
    "model/initialize.py",
    "model/placements.py",
    "model/resnet.py",
    "model/shortcuts.py",
    "model/stem.py",
    "model/units.py",
    "registry/inputs.py",
    "registry/predictor.py",
    "registry/serve.py",
)


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package as written: its folder, and what MLflow has to be told to load it."""

    folder: Path
    loader_module: str
    """The module in `code/` whose `_load_pyfunc` opens `data/`."""
    weights_sha256: str


def write(folder: Path, recipe: Recipe, weights: dict[str, torch.Tensor], class_names: list[str]) -> Package:
    """Writes a package's own files; nothing of MLflow's. Raises ValueError where the weights are another network's."""
    data = folder / DATA
    data.mkdir(parents=True)
    write_data(data, recipe, weights, class_names)
    _export(predictor.load_model(data), recipe, data / PROGRAM)
    name = _write_code(folder / CODE)
    return Package(
        folder=folder, loader_module=f"{name}.registry.serve", weights_sha256=_sha256(data / predictor.WEIGHTS)
    )


def seal(folder: Path) -> str:
    """Writes the manifest of all files, MLflow's own among them, and returns its sha256."""
    _write_json(folder / MANIFEST, {name: _sha256(folder / name) for name in _files(folder)})
    return _sha256(folder / MANIFEST)


def write_data(data: Path, recipe: Recipe, weights: dict[str, torch.Tensor], class_names: list[str]) -> None:
    """Writes what a `Predictor` reads to a folder that is there."""
    safetensors.torch.save_file(weights, data / predictor.WEIGHTS)
    # safetensors makes files that their owner alone can read.
    (data / predictor.WEIGHTS).chmod(0o644)
    _write_json(data / predictor.RECIPE, json.loads(without_credentials(json.dumps(recipe.to_dict()))))
    _write_json(data / predictor.CLASSES, class_names)
    _write_json(data / predictor.PREPROCESSING, _preprocessing(recipe))


def check(folder: Path, manifest_sha256: str) -> list[str]:
    """The files of a package that its manifest records.

    What Python and desktops have left beside them since then is passed over and is not among them. Raises ValueError,
    naming the file, where a package is not the one whose manifest had that sha256.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        raise ValueError(f"the package has no {MANIFEST}; it was not made by this project, or is not whole")
    if _sha256(manifest) != manifest_sha256:
        raise ValueError(f"the package's {MANIFEST} is not the one that the registry recorded; do not use this copy")
    recorded = json.loads(manifest.read_text())
    here = set(_files(folder))
    for name in sorted(recorded.keys() & here):
        if _sha256(folder / name) != recorded[name]:
            raise ValueError(f"the package's {name} was altered: its sha256 is not the recorded one; do not use it")
    # Whoever clears byte code away takes those files for it.
    if missing := sorted(name for name in recorded.keys() - here if Path(name).name != _BYTE_CODE):
        raise ValueError(f"the package lacks {missing[0]}; download it again")
    if extra := sorted(name for name in here - recorded.keys() if not _is_left_behind(name, recorded)):
        raise ValueError(f"the package has files that were not in it when it was made: {', '.join(extra)}")
    return sorted(recorded.keys() & here)


def take(folder: Path, target: Path, manifest_sha256: str) -> None:
    """Moves the files of a verified package, and nothing else that is there, to a new folder. Raises as `check`."""
    for name in [*check(folder, manifest_sha256), MANIFEST]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(target / name)


def requirements() -> list[str]:
    """What a package needs, pinned to what is installed here."""
    # A build's local version, such as 2.15.0+cpu, is on no index.
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in REQUIREMENTS]


def _preprocessing(recipe: Recipe) -> dict[str, Any]:
    constants = DATASETS[recipe.data.dataset]
    return {
        "crop": recipe.evaluation.crops[0],
        "shorter_side": recipe.evaluation.shorter_sides[0],
        "resampling": "bilinear, antialiased",
        "color": "RGB, divided by 255; of 16 bits the high byte, transparency on white",
        "mean": constants.mean,
        "std": constants.std,
    }


def _export(model: torch.nn.Module, recipe: Recipe, path: Path) -> None:
    """Traces the network for any number of images of any size that its strides divide."""
    side = recipe.evaluation.crops[0]
    images = torch.zeros(2, 3, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own use of what torch deprecates.
        program = torch.export.export(
            model, (images,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},), strict=False
        )
        torch.export.save(program, path)


def _write_code(folder: Path) -> str:
    """Copies the modules that a package needs under a name that no installed version has; returns that name."""
    source = Path(__file__).parents[1]
    texts = {name: (source / name).read_text() for name in _MODULES}
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:8]
    package = f"dist_resnet_{digest}"
    parts = {Path(name).parent for name in _MODULES}
    texts |= {str(part / "__init__.py"): "" for part in parts if str(part / "__init__.py") not in texts}
    texts |= {str(part / _BYTE_CODE): "" for part in parts}
    for name, text in texts.items():
        path = folder / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub(r"^(\s*(?:from|import) )dist_resnet\b", rf"\1{package}", text, flags=re.MULTILINE))
    return package


def _files(folder: Path) -> list[str]:
    """The files of a package but for the manifest, and for what MLflow adds to its own downloads."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(set(names) - {MANIFEST, "registered_model_meta"})


def _is_left_behind(name: str, recorded: Container[str]) -> bool:
    """Whether a file is byte code, whole or half written, that Python makes of a recorded module, or a desktop's."""
    path = PurePosixPath(name)
    module = path.parent.parent / f"{path.name.partition('.')[0]}.py"
    byte_code = re.fullmatch(r"\w+\.[\w-]+(\.opt-\w+)?\.pyc(\.\d+)?", path.name, flags=re.ASCII)
    if path.parent.name == _BYTE_CODE and byte_code:
        return str(module) in recorded
    return _LEFT_BEHIND.fullmatch(path.name) is not None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
