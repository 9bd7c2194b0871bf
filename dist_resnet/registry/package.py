"""A model as a pickle-free folder that MLflow, torch and this project can load.

data/model.safetensors    weights and BN statistics
data/recipe.json          the recipe that trained them; its `model` defines the network
data/classes.json         class names, in the order of the logits
data/preprocessing.json   crop, shorter side, mean and standard deviation
data/model.pt2            the network as a torch.export program: float32 [N, 3, H, W] -> logits, on the CPU
code/dist_resnet_HASH     the modules that rebuild the network and predict, under a unique name; with empty files
                          `__pycache__`, so that Python neither writes byte code there nor runs any
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

from dist_resnet.data.datasets import normalization_of
from dist_resnet.recipe import Recipe
from dist_resnet.registry import predictor
from dist_resnet.storage.uri import without_credentials

DATA, CODE, MANIFEST, PROGRAM = "data", "code", "manifest.json", "model.pt2"
# If a plain file has this name, Python neither creates the folder nor reads it.
_BYTE_CODE = "__pycache__"
# Files of macOS, Windows and NFS.
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
    """A written package: its folder, and what MLflow needs to load it."""

    folder: Path
    loader_module: str
    """The module in `code/` whose `_load_pyfunc` opens `data/`."""
    weights_sha256: str


def write(folder: Path, recipe: Recipe, weights: dict[str, torch.Tensor], class_names: list[str]) -> Package:
    """Writes a package without MLflow's files. Raises ValueError if the weights belong to another network."""
    data = folder / DATA
    data.mkdir(parents=True)
    write_data(data, recipe, weights, class_names)
    _export(predictor.load_model(data), recipe, data / PROGRAM)
    name = _write_code(folder / CODE)
    return Package(
        folder=folder, loader_module=f"{name}.registry.serve", weights_sha256=_sha256(data / predictor.WEIGHTS)
    )


def seal(folder: Path) -> str:
    """Writes the manifest of all files, including MLflow's, and returns its sha256."""
    _write_json(folder / MANIFEST, {name: _sha256(folder / name) for name in _files(folder)})
    return _sha256(folder / MANIFEST)


def write_data(data: Path, recipe: Recipe, weights: dict[str, torch.Tensor], class_names: list[str]) -> None:
    """Writes the files of a `Predictor` to an existing folder."""
    safetensors.torch.save_file(weights, data / predictor.WEIGHTS)
    # safetensors creates files that only their owner can read.
    (data / predictor.WEIGHTS).chmod(0o644)
    _write_json(data / predictor.RECIPE, json.loads(without_credentials(json.dumps(recipe.to_dict()))))
    _write_json(data / predictor.CLASSES, class_names)
    _write_json(data / predictor.PREPROCESSING, _preprocessing(recipe))


def check(folder: Path, manifest_sha256: str) -> list[str]:
    """The files of a package that its manifest lists, verified.

    Ignores files that Python or a desktop have added since. Raises ValueError, naming the file, if the manifest does
    not have that sha256 or a file differs from it.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        raise ValueError(f"the package has no {MANIFEST}: it is incomplete or was not made by this project")
    if _sha256(manifest) != manifest_sha256:
        raise ValueError(f"the package's {MANIFEST} is not the one that the registry recorded; do not use this copy")
    recorded = json.loads(manifest.read_text())
    here = set(_files(folder))
    for name in sorted(recorded.keys() & here):
        if _sha256(folder / name) != recorded[name]:
            raise ValueError(f"the package's {name} was altered: its sha256 is not the recorded one; do not use it")
    # Tools that remove byte code also remove those empty files.
    if missing := sorted(name for name in recorded.keys() - here if Path(name).name != _BYTE_CODE):
        raise ValueError(f"the package lacks {missing[0]}; download it again")
    if extra := sorted(name for name in here - recorded.keys() if not _is_left_behind(name, recorded)):
        raise ValueError(f"the package has files that its manifest does not list: {', '.join(extra)}; do not use it")
    return sorted(recorded.keys() & here)


def take(folder: Path, target: Path, manifest_sha256: str) -> None:
    """Moves the files of a package to a new folder, verified and without any other files. Raises as `check`."""
    for name in [*check(folder, manifest_sha256), MANIFEST]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(target / name)


def requirements() -> list[str]:
    """The packages that a package needs, pinned to the versions installed here."""
    # A local version, such as 2.15.0+cpu, is not on any index.
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in REQUIREMENTS]


def _preprocessing(recipe: Recipe) -> dict[str, Any]:
    normalization = normalization_of(recipe.data)
    return {
        "crop": recipe.evaluation.crops[0],
        "shorter_side": recipe.evaluation.shorter_sides[0],
        "resampling": "bilinear, antialiased",
        "color": "RGB, divided by 255; of 16 bits the high byte, transparency on white",
        "mean": normalization.mean,
        "std": normalization.std,
    }


def _export(model: torch.nn.Module, recipe: Recipe, path: Path) -> None:
    """Exports the network for any number of images of the evaluation crop's size."""
    side = recipe.evaluation.crops[0]
    images = torch.zeros(2, 3, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own use of what torch deprecates.
        program = torch.export.export(
            model, (images,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},), strict=False
        )
        torch.export.save(program, path)


def _write_code(folder: Path) -> str:
    """Copies the modules that a package needs under a name unique to their content; returns that name."""
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
    """The files of a package, except the manifest and a file that MLflow adds to its downloads."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(set(names) - {MANIFEST, "registered_model_meta"})


def _is_left_behind(name: str, recorded: Container[str]) -> bool:
    """Whether a file is a recorded module's byte code, complete or not, or was added by a desktop."""
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
