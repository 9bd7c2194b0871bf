"""Libraries are used by what they publish. Oracle: the imports in the sources, read by `ast`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dist_resnet"
_PRIVATE_ALLOWED = {"launch/ray/internals.py"}


def _imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _private(source: str) -> list[str]:
    return [
        name
        for name in _imported(source)
        if any(part == "generated" or (part.startswith("_") and part != "__future__") for part in name.split("."))
    ]


def test_what_a_library_does_not_publish_is_imported_in_one_file_alone():
    found = {str(path.relative_to(PACKAGE)): _private(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert {name for name, private in found.items() if private} == _PRIVATE_ALLOWED


@pytest.mark.parametrize(
    ("source", "private"),
    [
        ("from ray._private import services", ["ray._private.services"]),
        ("from ray.core.generated.common_pb2 import PYTHON", ["ray.core.generated.common_pb2.PYTHON"]),
        ("def f():\n    import torch._dynamo", ["torch._dynamo"]),
        ("from torch import _C", ["torch._C"]),
        ("from ray.train import ScalingConfig", []),
    ],
)
def test_private_imports_are_seen(source: str, private: list[str]):
    assert _private(source) == private
