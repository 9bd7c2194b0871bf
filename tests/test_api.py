"""The package's own names. Oracle: the sources, read by `ast`, their doctests' text, and Python in a fresh process."""

import ast
import dataclasses
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import dist_resnet

REPOSITORY = Path(__file__).parents[1]
NAMES = sorted(set(dist_resnet.__all__) - {"__version__"})


def _python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _examples(text: str | None) -> str:
    return "".join(example.source for example in doctest.DocTestParser().get_examples(text or ""))


def test_importing_the_package_takes_no_library_and_changes_nothing():
    assert (
        _python(
            "import sys, signal; before = signal.getsignal(signal.SIGINT); import dist_resnet\n"
            "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'tyro', 'rich', 'pyarrow', 'IPython'} & set(sys.modules)\n"
            "print(heavy, dist_resnet.__version__)\n"
            "dist_resnet.Recipe, dist_resnet.Execution\n"
            "print({'torch', 'ray', 'mlflow', 'numpy', 'tyro'} & set(sys.modules))\n"
            "from dist_resnet import *\n"
            "print(before == signal.getsignal(signal.SIGINT), 'dist_resnet.early' in sys.modules)\n"
        )
        == f"set() {dist_resnet.__version__}\nset()\nTrue False\n"
    )


def test_names_that_there_are_not_are_no_names():
    with pytest.raises(AttributeError, match="has no attribute 'run_trainig'"):
        dist_resnet.run_trainig  # pyrefly: ignore  # noqa: B018
    with pytest.raises(ImportError, match="shrink"):
        from dist_resnet import shrink  # noqa: F401


def test_editors_and_type_checkers_see_the_names_that_there_are():
    tree = ast.parse(Path(dist_resnet.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        seen |= {name.name: statement.module for name in statement.names}
    assert sorted(seen) == NAMES
    for name, module in seen.items():
        assert getattr(dist_resnet, name) is getattr(importlib.import_module(str(module)), name)
    assert set(NAMES) <= set(dir(dist_resnet))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_an_example_or_is_a_dataclass_that_one_uses(name: str):
    named = getattr(dist_resnet, name)
    assert named.__doc__
    assert not named.__doc__.startswith(f"{name}(")  # that which dataclasses make themselves
    if dataclasses.is_dataclass(named):
        everything = [dist_resnet.__doc__, *(getattr(dist_resnet, other).__doc__ for other in NAMES)]
        returned = "evaluate(" if name == "Evaluated" else f"{name}("
        assert any(returned in _examples(text) for text in everything)
    else:
        assert f"{name}(" in _examples(named.__doc__)


def test_the_version_stands_in_one_place_and_others_agree():
    build = (REPOSITORY / "pyproject.toml").read_text()
    assert re.search(r'(?m)^dynamic = \["version"\]$', build)
    assert not re.search(r"(?m)^version =", build)
    image = re.search(r'image\.version="([^"]+)"', (REPOSITORY / "docker" / "Dockerfile").read_text())
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert image is not None
    assert {image[1], citation["version"]} == {dist_resnet.__version__}


def test_a_job_imported_at_a_prompt_leaves_ctrl_c_to_the_prompt():
    program = (
        "import sys; {}\nfrom dist_resnet import cli\n"
        "sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None); print('goes on')"
    )
    assert _python(program.format("sys.ps1 = '>>> '")) == "goes on\n"
    done = subprocess.run([sys.executable, "-c", program.format("")], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "-c: interrupted\n")
