"""What all benchmarks share: the command line, contestants in turn, the figures, and the dated result.

A benchmark is a function that takes its options and yields its result as Markdown, line by line:

    if __name__ == "__main__":
        harness.main(measure, Options, __doc__)

A result begins with the question, the date, the command, the machine and the versions, and ends with the load.
"""

import contextlib
import dataclasses
import datetime
import itertools
import os
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from dist_resnet import cli
from dist_resnet.tracking import provenance

RoundT = TypeVar("RoundT", bound=Sequence[float])
OptionsT = TypeVar("OptionsT", bound="Options")

_QUICK = "**A quick run, to see that the script works: its figures are not a measurement.**"
_VERSION = "version."


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark takes."""

    quick: bool = False
    """Use the smallest sizes, to see that the script works; the result says that it is not a measurement."""
    result: Path | None = None
    """Markdown file to append the result to; in a folder, such as benchmarks/results, it is named by script, machine
    and date. By default the result is only printed."""


class WithdrawnError(Exception):
    """A contestant cannot go on, which costs the others nothing."""


def sized(full: Any, *, quick: Any) -> Any:
    """An option's default, and its default with --quick."""
    return dataclasses.field(default_factory=lambda: quick if "--quick" in sys.argv else full)


def main(measure: Callable[[OptionsT], Iterator[str]], kind: Any, doc: str | None) -> NoReturn:
    """A benchmark's whole main: reads the command line, measures, prints the result and writes it where it is wanted.

    `kind` is the class of its options, or a union of such classes, each a command.
    """
    cli.run(lambda: _answer(measure, parse(kind, doc), doc))


def parse(kind: type[OptionsT], doc: str | None) -> OptionsT:
    """The options of a command line; exits as `cli.parse_options` does."""
    without_negations: Any = cli.FLAG[kind]
    return cli.parse_options(without_negations, doc=doc)


def _answer(measure: Callable[[OptionsT], Iterator[str]], options: OptionsT, doc: str | None) -> None:
    with cli.bad_input_exits():
        target = result_file(options.result, Path(sys.argv[0]).stem) if options.result else None
        lines = []
        for line in itertools.chain(header(doc, options), measure(options), footer()):
            print(line, flush=True)
            lines.append(f"{line}\n")
        if target:
            with target.open("a", encoding="utf-8") as file:
                file.writelines(lines)


def result_file(result: Path, benchmark: str) -> Path:
    """The file for a result: as given, or in the folder given `BENCHMARK_MACHINE_DATE.md`.

    Raises ValueError if there is no such folder.
    """
    if result.is_dir():
        return result / f"{benchmark}_{machine_name()}_{_today():%Y%m%d}.md"
    if not result.parent.is_dir():
        raise ValueError(f"--result {result} is in no folder that exists; make {result.parent} first")
    return result


def header(doc: str | None, options: Options) -> Iterator[str]:
    """The lines that a result begins with."""
    found = provenance.collect()
    versions = [f"{key.removeprefix(_VERSION)} {value}" for key, value in found.items() if key.startswith(_VERSION)]
    settings = [f"{name} {value}" for name, value in vars(options).items() if name not in ("quick", "result")]
    yield f"# {(doc or '').partition(chr(10))[0].rstrip('.')}, {_today().isoformat()}\n"
    if options.quick:
        yield f"{_QUICK}\n"
    yield f"    python benchmarks/{shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}\n"
    yield f"{machine()}; {', '.join(versions)}; commit {found['commit']}; load average {_load()} at the start."
    yield f"Options: {', '.join(settings)}.\n"


def footer() -> Iterator[str]:
    """The lines that a result ends with."""
    yield f"\nLoad average {_load()} at the end.\n"


def machine() -> str:
    """The processor, the memory and the GPU, in words."""
    import psutil

    with open("/proc/cpuinfo") as lines:
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    memory = psutil.virtual_memory().total / 1e9
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GB of memory, {_gpu() or 'no GPU'}"


def _gpu() -> str | None:
    # Without torch, whose memory would count where memory is measured.
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return ", ".join(subprocess.check_output(asked, text=True).splitlines()) or None


def machine_name() -> str:
    """The machine in file names: its GPU, or cpu and the number of its cores."""
    gpu = _gpu()
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") if gpu else f"cpu{os.cpu_count()}"


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def interleaved(
    contestants: Mapping[str, Callable[[], RoundT]], rounds: int, *, warm_up: int = 0
) -> dict[str, list[RoundT]]:
    """What each contestant gave in each round: one works at a time, and each round begins with another one.

    The first `warm_up` rounds do not count. Who withdraws is left out, with all its rounds. Progress goes to standard
    error.
    """
    found: dict[str, list[RoundT]] = {name: [] for name in contestants}
    for number in range(-warm_up, rounds):
        for name in _turned(list(found), number):
            try:
                one = contestants[name]()
            except WithdrawnError as error:
                print(f"left out from here on: {error}", file=sys.stderr, flush=True)
                del found[name]
                continue
            if number >= 0:
                found[name].append(one)
                figures = ", ".join(f"{figure:.4g}" for figure in one)
                print(f"round {number} {name}: {figures}", file=sys.stderr, flush=True)
    return found


def _turned(names: list[str], by: int) -> list[str]:
    by = by % len(names) if names else 0
    return names[by:] + names[:by]


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the ratios within a round."""
    return statistics.median(one / other for one, other in zip(over, under, strict=True))


def spread(values: Sequence[float], form: str = ".0f") -> str:
    """The median and the range, such as 2 (1 .. 3)."""
    middle, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} .. {high})"


def table(columns: Mapping[str, str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """A Markdown table, row by row as they come; `columns` gives the format of the figures under each head.

    A text stands as it is; nothing, and what a row lacks at its end, is a dash.
    """
    yield f"| {' | '.join(columns)} |"
    yield f"|---{'|---:' * (len(columns) - 1)}|"
    for row in rows:
        cells = itertools.zip_longest(columns.values(), row)
        yield f"| {' | '.join(_cell(value, form or '') for form, value in cells)} |"


def _cell(value: object, form: str) -> str:
    return "-" if value is None else format(value, "" if isinstance(value, str) else form)


def comparison(
    found: Mapping[str, Sequence[Sequence[float]]], figures: Mapping[str, str], *bases: str
) -> Iterator[str]:
    """A table of contestants: medians and ranges of each figure of their rounds, and the medians of its ratios to that
    of each base in the same round.

    `figures` gives the format of each figure, by its head.
    """
    bases = tuple(base for base in bases if base in found)
    heads = [f"{head}, median (range)" for head in figures] + [f"{head} / {base}" for base in bases for head in figures]

    def row(rounds: Sequence[Sequence[float]]) -> Iterator[object]:
        own = list(zip(*rounds, strict=True))
        yield from map(spread, own, figures.values())
        for base in bases:
            yield from map(median_ratio, own, zip(*found[base], strict=True))

    yield from table({"": ""} | dict.fromkeys(heads, ".2f"), ((name, *row(rounds)) for name, rounds in found.items()))


@contextlib.contextmanager
def server(
    command: Callable[[int], list[str]], *, health: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A server on a free port within the block: its address, once it answers at `health`.

    `command` gives the command for a port. Raises RuntimeError if the server ends, or does not answer for five minutes.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with log.open("wb") as file:
        # Its own children end with it only as a group.
        process = subprocess.Popen(command(port), env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        _await(f"{address}/{health}", process, log)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(address: str, process: subprocess.Popen, log: Path, *, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2):
            return
        time.sleep(0.2)
    raise RuntimeError(f"{address} does not answer; the server's log ends in {log.read_text()[-300:]!r}")
