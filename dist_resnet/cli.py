"""The typed command line of every training job: a recipe's and an execution's own fields, and --demo."""

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from dist_resnet import logs
from dist_resnet.recipe import Execution, Recipe


@dataclass(frozen=True, kw_only=True)
class _Options:
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    execution: Execution
    demo: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Shrink the run to generated pictures of ten classes and minutes on a laptop; other options still apply."""


def run_job(
    recipe: Recipe, execution: Execution, *, doc: str | None, arguments: Sequence[str] | None = None
) -> NoReturn:
    """A training job's whole main: reads the command line, trains on Ray Train, exits.

    Exits with 0 where the run is finished, now or from before; 1 where it failed or diverged; 2 on bad input, which
    is named in one line on standard error before any worker starts.
    """
    recipe, execution, demo = parse(recipe, execution, doc=doc, arguments=arguments)
    logs.configure()
    # Imported late, so that --help and a mistyped option need not wait for torch and Ray.
    from dist_resnet.launch import ray_train
    from dist_resnet.launch.demo import write_pictures

    job = Path(sys.argv[0]).stem
    with bad_input_exits():
        if demo:
            recipe = write_pictures(recipe, execution)
        plan = ray_train.prepare_run(recipe, execution, job=f"{job}-demo" if demo else job)
    summary = ray_train.run(plan)
    sys.exit(0 if summary["status"] == "finished" else 1)


def parse(
    recipe: Recipe, execution: Execution, *, doc: str | None, arguments: Sequence[str] | None = None
) -> tuple[Recipe, Execution, bool]:
    """A job's recipe and execution with the command line's options laid over them, and whether it is the demo.

    Exits with 2 and one line on standard error for an unknown option or an ill-typed or impossible value; with 0
    after --help.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--demo" in arguments:
        from dist_resnet.launch.demo import shrink

        recipe, execution = shrink(recipe, execution)
    complaint = io.StringIO()
    try:
        with bad_input_exits(), contextlib.redirect_stderr(complaint):
            defaults = _Options(recipe=recipe, execution=execution)
            options = tyro.cli(_Options, args=arguments, default=defaults, description=doc)
    except SystemExit as end:
        if end.code == 2 and complaint.getvalue():
            sys.stderr.write(_one_line(complaint.getvalue()) + "\n")
        raise
    return options.recipe, options.execution, options.demo


@contextlib.contextmanager
def bad_input_exits() -> Iterator[None]:
    """Turns a ValueError or a missing file within the block into one line on standard error and exit code 2."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}\n")
        sys.stderr.flush()
        sys.exit(2)


def _one_line(complaint: str) -> str:
    """The framed complaint of the parser as one line: what is wrong, what was perhaps meant, where help is."""
    lines = [line.strip("│╭╮╰╯─ \n") for line in complaint.splitlines()]
    rules = [number for number, line in enumerate(complaint.splitlines()) if "───" in line and "│" in line]
    end = rules[0] if rules else len(lines)
    reason = " ".join(line for line in lines[1:end] if line)
    meant = [line.split()[0] for line in lines[end:] if line.startswith("--")] if "Perhaps" in complaint else []
    hint = f"; perhaps you meant {' or '.join(meant[:3])}" if meant else ""
    return f"{Path(sys.argv[0]).name}: {reason}{hint}; see --help"
