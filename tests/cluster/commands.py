"""The jobs' commands that manifests, scripts and pages name, read by the jobs' own command lines."""

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from dist_resnet import cli
from dist_resnet.recipe import Execution

ROOT = Path(__file__).parents[2]


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of each command of a job in a page or a script, without `...`."""
    joined = re.sub(r" *\\\n[ #]*", " ", text)
    for found in re.finditer(r"(?:python|uv run) ((?:/app/)?jobs/[^\n`#|]+)", joined):
        words = shlex.split(found[1].strip().rstrip(")"))
        yield [word for word in words if word != "..."]


def execution_of(words: list[str]) -> Execution | None:
    """The execution that a job's words give; None if the job has none. Fails as the job does on wrong ones."""
    name = words[0].removeprefix("/app/")
    job, arguments = _load(ROOT / name), words[1:]
    if hasattr(job, "RECIPE") and not hasattr(job, "Options"):
        return cli.parse(job.RECIPE, job.EXECUTION, doc=job.__doc__, arguments=arguments)[1]
    default = (lambda: job.FULL) if hasattr(job, "FULL") else None
    options = cli.parse_options(job.Options, doc=job.__doc__, arguments=arguments, default=default)
    return getattr(options, "execution", None)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.exists() or spec is None or spec.loader is None:
        raise FileNotFoundError(f"there is no job {path}")
    job = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = job  # dataclasses look their types up there
    spec.loader.exec_module(job)
    return job
