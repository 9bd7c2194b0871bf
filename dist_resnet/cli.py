"""The command line of every training job: the fields of its recipe and execution, and --demo."""

import dist_resnet.early  # noqa: F401  first: from here on, Ctrl-C ends the process with one line

# isort: split
import contextlib
import io
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

from dist_resnet import logs, options, terminal
from dist_resnet.launch.failures import RayEndedError, RayFailedError
from dist_resnet.options import FLAG as FLAG
from dist_resnet.options import FLAT as FLAT
from dist_resnet.options import POSITIONAL as POSITIONAL
from dist_resnet.recipe import Execution, Recipe
from dist_resnet.wording import one_line

T = TypeVar("T")

# A shell's exit code for a command that Ctrl-C ended.
_STOPPED = 128 + signal.SIGINT

# In the parser's complaint: the options that are missing, each with its help.
_REQUIRED = re.compile(r"(?:^Missing from \S+:|\(required\)) (--[\w.-]+|\{[^}]+\})")

# Options of the previous version: old name -> new name. They still work, with a warning.
_RENAMED = {
    **{
        f"--execution.{old}": f"--execution.{new}"
        for old, new in {
            "checkpoint-every": "checkpoints.every",
            "checkpoint-minutes": "checkpoints.minutes",
            "keep-checkpoints": "checkpoints.keep",
            **{
                f"{prefix}{one}-minutes": f"recovery.{one}-timeout-minutes"
                for one in ("storage", "hang")
                for prefix in ("", "recovery.")
            },
            **{name: f"recovery.{name}" for name in ("resize-minutes", "max-failures")},
            **{
                f"{prefix}{no}spares": f"recovery.{no}spare-processes"
                for no in ("", "no-")
                for prefix in ("", "recovery.")
            },
            "damaged-share": "max-damaged-fraction",
            "decode": "decode-on",
            **{name: f"performance.{name}" for name in ("prefetch", "evaluation-batch")},
            "cache": "cache.folder",
            "cache-gigabytes": "cache.gigabytes",
            "tracking-uri": "tracking.uri",
            **{name: f"tracking.{name}" for name in ("experiment", "model-name", "register", "no-register")},
        }.items()
    },
    **{
        f"--execution.{no}{name}": f"--execution.performance.{no}{name}"
        for name in ("channels-last", "compile", "cuda-graphs", "recompute", "deterministic")
        for no in ("", "no-")
    },
    "--execution.trials-per-gpu": "--trials-per-gpu",
}


@dataclass(frozen=True, kw_only=True)
class _Options:
    demo: Annotated[bool, FLAG] = False
    """Train on generated images of ten classes, in minutes on a laptop. Other options still apply."""
    recipe: Annotated[Recipe, FLAT]
    execution: Execution


def run_job(
    recipe: Recipe,
    execution: Execution,
    *,
    doc: str | None,
    follows_weights: bool = False,
    arguments: Sequence[str] | None = None,
) -> NoReturn:
    """The main of a training job: reads the command line, trains on Ray Train, exits.

    With `follows_weights`, initial weights must be given, and the recipe takes their network, crops and normalization.

    Exits with 0 if the run has finished, now or earlier; 1 if it failed or diverged; 2 on bad input, explained in one
    line on standard error before any worker starts; 130 if it was stopped and can resume.
    """
    run(
        lambda: _train(recipe, execution, doc, follows_weights, sys.argv[1:] if arguments is None else arguments),
        advice="the same command resumes from the newest checkpoint",
    )


def run(main: Callable[[], None], *, advice: str = "") -> NoReturn:
    """Calls a job's main and exits with its exit code, or with 0, even if its output is lost.

    Exits with 130 on Ctrl-C and with 143 on SIGTERM, after one line that ends with the advice.
    """
    terminal.open_streams()
    with bad_input_exits():
        terminal.check_working_directory()
    with terminal.ending_in_a_line(advice):
        try:
            main()
        except RayFailedError as error:
            sys.exit(1 if isinstance(error, RayEndedError) else f"{Path(sys.argv[0]).name}: {error}")
        finally:
            if loss := terminal.lost_output():
                sys.stderr.write(f"{Path(sys.argv[0]).name}: {loss}\n")
    sys.exit(0)


def _train(
    recipe: Recipe, execution: Execution, doc: str | None, follows_weights: bool, arguments: Sequence[str]
) -> NoReturn:
    if follows_weights and not {"--help", "-h"} & {*arguments}:
        with bad_input_exits():
            recipe = _follow_weights(recipe, execution, arguments)
    recipe, execution, demo = parse(recipe, execution, doc=doc, arguments=arguments)
    logs.configure()
    # Imported late, so that --help and a mistyped option need not wait for torch and Ray.
    from dist_resnet.launch import training
    from dist_resnet.launch.demo import write_images
    from dist_resnet.tracking.records import Finished, Stopped

    job = Path(sys.argv[0]).stem
    with bad_input_exits():
        if demo:
            recipe = write_images(recipe, execution)
        plan = training.prepare(recipe, execution, job=f"{job}-demo" if demo else job)
    with failures_exit():
        summary = training.train(plan)
    sys.exit({Finished.kind: 0, Stopped.kind: _STOPPED}.get(summary["status"], 1))


def _follow_weights(recipe: Recipe, execution: Execution, arguments: Sequence[str]) -> Recipe:
    """The recipe for the initial weights on a command line. Raises ValueError if it names none."""
    from dist_resnet.launch.finetune import follow_weights, value_of

    weights = value_of(arguments, "--initial.weights")
    if not weights:
        raise ValueError(
            "fine-tuning starts from trained weights: give --initial.weights models:/NAME@ALIAS, a run STORAGE/NAME or "
            "a file .safetensors or .pth"
        )
    return follow_weights(
        recipe,
        weights,
        storage=value_of(arguments, "--execution.storage") or execution.storage,
        name=value_of(arguments, "--execution.name"),
        tracking_uri=value_of(arguments, "--execution.tracking.uri"),
    )


def run_or_model(run: str | None, model: str | None) -> str:
    """The given one of the options --run and --model. Raises ValueError unless exactly one is given, well-formed."""
    if (run is None) == (model is None):
        raise ValueError(f"give either --run or --model, got {'neither' if run is None else 'both'}")
    if model is not None and not model.startswith("models:/"):
        raise ValueError(f"a model is models:/NAME/VERSION or models:/NAME@ALIAS, got {model!r}; --run takes a run")
    return run or model or ""


def parse(
    recipe: Recipe, execution: Execution, *, doc: str | None, arguments: Sequence[str] | None = None
) -> tuple[Recipe, Execution, bool]:
    """A job's recipe and execution, changed by the command line, and whether --demo is given.

    Exits like `parse_options`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--demo" in arguments:
        from dist_resnet.launch.demo import shrink

        recipe, execution = shrink(recipe, execution)
    parsed = parse_options(
        _Options, doc=doc, arguments=arguments, default=lambda: _Options(recipe=recipe, execution=execution)
    )
    return parsed.recipe, parsed.execution, parsed.demo


def parse_options(
    kind: type[T], *, doc: str | None, arguments: Sequence[str] | None = None, default: Callable[[], T] | None = None
) -> T:
    """A dataclass of options read from the command line.

    Exits with 2 and one line on standard error for an unknown option or an ill-typed or impossible value; with 0
    after --help.
    """
    complaint = io.StringIO()
    arguments = [_renamed(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    try:
        with bad_input_exits(), contextlib.redirect_stderr(complaint):
            return options.parse(kind, arguments, doc=doc or "", default=default() if default else None)
    except SystemExit as end:
        if end.code == 2 and complaint.getvalue():
            sys.stderr.write(_one_line(complaint.getvalue()) + "\n")
        raise


def _renamed(argument: str) -> str:
    """The argument under its current name; writes a warning if it had the name of the previous version."""
    name, equals, value = argument.partition("=")
    # The parser accepts dashes and underscores.
    today = _RENAMED.get(name.replace("_", "-")) if name.startswith("--") else None
    if today is None:
        return argument
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {name} is now called {today}; the next version drops the old name\n")
    return f"{today}{equals}{value}"


@contextlib.contextmanager
def bad_input_exits() -> Iterator[None]:
    """Turns a ValueError or an OSError within the block into one line on standard error and exit code 2."""
    try:
        yield
    except UnicodeError as error:
        _refuse(terminal.said_of(error))
    except (ValueError, OSError) as error:
        _refuse(str(error))


@contextlib.contextmanager
def failures_exit() -> Iterator[None]:
    """Turns a RuntimeError or an OSError of a run within the block into one line and exit code 1."""
    try:
        yield
    except RayFailedError:
        raise
    except (RuntimeError, OSError) as error:
        sys.exit(
            f"{Path(sys.argv[0]).name}: {one_line(error, most=1000)}; once that is fixed, the same command resumes"
        )


def _refuse(reason: str) -> NoReturn:
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {' '.join(reason.split())}\n")
    sys.stderr.flush()
    sys.exit(2)


def _one_line(complaint: str) -> str:
    """The parser's framed complaint as one line: the mistake, what was perhaps meant, where to find help."""
    lines = [line.strip("│ ") for line in complaint.splitlines() if line[:1] not in ("╭", "╰")]
    sections: list[list[str]] = [[]]
    for line in lines:
        if line and not line.strip("─-"):
            sections.append([])
        elif line:
            sections[-1].append(line)
    if "│" not in complaint:
        del sections[0]  # The title, which comes first if the terminal cannot draw a frame.
    meant = (
        [line.split()[0] for section in sections for line in section if line.startswith("--")]
        if "Perhaps" in complaint
        else []
    )
    # The parser's name for the group of options is that of a class.
    wrong = re.sub(r"^Error parsing (?:(?!--)\S+: )?", "", " ".join(sections[0])).rstrip(".")
    if required := _REQUIRED.findall(wrong):
        wrong = "give " + " and ".join(
            f"one of {', '.join(name.strip('{}').split(','))}" if name.startswith("{") else name for name in required
        )
    if unknown := re.search(r"--[\w.-]+", wrong):
        # The parser may name a longer option that contains the given one's words first.
        meant.sort(key=lambda name: -SequenceMatcher(None, unknown[0], name).ratio())
    hint = f"; perhaps you meant {' or '.join(meant[:3])}" if meant else ""
    return f"{Path(sys.argv[0]).name}: {wrong}{hint}; see --help"
