"""Files of weights. Oracle: the tensors that torch and safetensors wrote, and files that were damaged or hold code."""

import argparse
import contextlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dist_resnet.weights.files import CLASSES, MODEL, is_file, read

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def _same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "A.PTH", "a.pth.tar", "pytorch_model.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_of_torch_is_read_in_both_of_its_formats(tmp_path: Path, name: str, zipped: bool):
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert is_file(str(tmp_path / name))
    assert _same(read(str(tmp_path / name)).tensors)


@pytest.mark.parametrize(
    "wrapped",
    [
        {"model": STATE, "epoch": 3},
        {"state_dict": STATE, "arch": "resnet50", "best": torch.tensor(1.0)},
        {"state_dict": {f"module.{name}": tensor for name, tensor in STATE.items()}},
        {f"module.{name}": tensor for name, tensor in STATE.items()},
    ],
)
def test_the_state_dict_in_a_checkpoint_of_another_script_is_found(tmp_path: Path, wrapped: dict):
    torch.save(wrapped, tmp_path / "a.pth")
    assert _same(read(str(tmp_path / "a.pth")).tensors)


def test_a_safetensors_file_is_read_with_what_it_says_about_itself(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(STATE, path)
    found = read(str(path))
    assert _same(found.tensors)
    assert (found.model, found.classes) == ({}, None)
    about = {MODEL: json.dumps({"depth": 20}), CLASSES: json.dumps(["cat", "dog"]), "format": "pt"}
    safetensors.torch.save_file(STATE, path, metadata=about)
    found = read(path.as_uri())
    assert (found.model, found.classes) == ({"depth": 20}, ("cat", "dog"))


@pytest.mark.parametrize("about", [{MODEL: "3"}, {MODEL: "{"}, {CLASSES: "3"}, {CLASSES: "cat"}])
def test_a_description_of_something_else_is_refused(tmp_path: Path, about: dict):
    safetensors.torch.save_file(STATE, tmp_path / "a.safetensors", metadata=about)
    with pytest.raises(ValueError, match="a.safetensors is damaged or not a safetensors file"):
        read(str(tmp_path / "a.safetensors"))


class _Code:
    """Unpickled by pickle, creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _pickled(content: object, *, zipped: bool) -> bytes:
    if not zipped:
        return pickle.dumps(content, 2)
    with io.BytesIO() as file:
        torch.save(content, file)
        return file.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("within", [False, True])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path: Path, zipped: bool, within: bool):
    trace = tmp_path / "trace"
    content = _pickled(STATE | {"more": _Code(trace)} if within else _Code(trace), zipped=zipped)
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a.pth holds more than tensors, and reading it could run code, so it is refus"
    ):
        read(str(tmp_path / "a.pth"))
    assert not trace.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(tmp_path / "a.pth", weights_only=False)  # the file does run code if it may
    assert trace.exists()


def test_a_checkpoint_with_options_of_its_script_is_refused_with_the_way_to_save_its_weights(tmp_path: Path):
    torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"save its state dict alone: torch.save\(model.state_dict\(\), "):
        read(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("content", [3, [torch.zeros(1)], {"a": 1}, {"model": {"a": torch.zeros(1), "b": "c"}}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds no state dict, which is a dictionary of tensors, but"):
        read(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "old.pth"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, share: float):
    path = tmp_path / name
    state = {"a": torch.randn(200, 200)}
    if name == "a.safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "a.pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"{name} is damaged or not a") as caught:
        read(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x80", b"PK\x03\x04 no archive", bytes(100)])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} "):
        read(str(tmp_path / name))


def test_an_archive_of_other_files_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ValueError, match="a.pth is damaged or not a"):
        read(str(tmp_path / "a.pth"))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="none.pth"):
        read(str(tmp_path / "none.pth"))


@pytest.mark.parametrize("name", ["resnet-50.t7", "resnet50v2.h5", "m.keras", "m.onnx", "resnetv2.npz"])
def test_files_of_other_programs_are_refused_with_the_page_on_converting_them(name: str):
    with pytest.raises(
        ValueError, match=rf"{name}.region=a is not read: give a file .safetensors.*docs/initial-weights.md"
    ):
        is_file(f"s3://bucket/{name}?region=a")


@pytest.mark.parametrize("address", ["/runs/first", "/runs/first/checkpoints/step_00000040", "s3://b/run?region=a.pth"])
def test_other_addresses_are_not_files(address: str):
    assert not is_file(address)
