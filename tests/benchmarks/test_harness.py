"""benchmarks/harness.py; oracles: NumPy's medians, orders and tables written out by hand, importlib.metadata."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import numpy as np
import pytest

QUESTION = """How fast is it.

    python benchmarks/how.py
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    rounds: int = harness.sized(5, quick=1)
    depth: int = 20  # Layers.


def measure(options: Options) -> Iterator[str]:
    yield f"{options.rounds} rounds of depth {options.depth}"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda *arguments: monkeypatch.setattr(sys, "argv", ["how.py", *arguments])


@pytest.fixture
def run(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str, str]]:
    """What a benchmark of that command line exits with, prints, and says."""

    def run(*arguments: str) -> tuple[object, str, str]:
        command(*arguments)
        with pytest.raises(SystemExit) as end:
            harness.main(measure, Options, QUESTION)
        return end.value.code, *capsys.readouterr()

    return run


def contestants(order: list[str], *names: str) -> dict[str, Callable[[], tuple[float]]]:
    """They note in `order` whose turn it is, and give how many turns there were."""

    def turn(name: str) -> tuple[float]:
        order.append(name)
        return (float(len(order)),)

    return {name: lambda name=name: turn(name) for name in names}


def rows(lines: Iterator[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_each_round_has_every_contestant_once_and_begins_with_the_next_one() -> None:
    order: list[str] = []
    found = harness.interleaved(contestants(order, "a", "b", "c"), 4)
    assert "".join(order) == "abcbcacababc"
    assert found == {"a": [(1,), (6,), (8,), (10,)], "b": [(2,), (4,), (9,), (11,)], "c": [(3,), (5,), (7,), (12,)]}


def test_rounds_of_warm_up_are_run_and_not_counted() -> None:
    order: list[str] = []
    found = harness.interleaved(contestants(order, "a", "b"), 2, warm_up=1)
    assert "".join(order) == "baabba"
    assert found == {"a": [(3,), (6,)], "b": [(4,), (5,)]}


def test_who_withdraws_is_left_out_and_the_others_keep_their_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []
    turns = contestants(order, "a", "b", "c")

    def second_time() -> tuple[float]:
        if order.count("b"):
            raise harness.WithdrawnError("b has no memory left")
        return turns["b"]()

    found = harness.interleaved(turns | {"b": second_time}, 3)
    assert "".join(order) == "abccaac"
    assert {name: len(rounds) for name, rounds in found.items()} == {"a": 3, "c": 3}
    assert "left out from here on: b has no memory left" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 7, 10])
def test_spread_is_the_median_and_the_range(count: int) -> None:
    values = np.random.default_rng(count).normal(100, 50, count)
    assert (
        harness.spread(values.tolist(), ".3f") == f"{np.median(values):.3f} ({values.min():.3f} .. {values.max():.3f})"
    )


def test_ratios_are_taken_within_a_round_and_not_of_medians() -> None:
    # A machine that is ten times slower in a round is so for both.
    fast, slow = np.array([100.0, 10.0, 90.0]), np.array([50.0, 4.0, 60.0])
    assert harness.median_ratio(fast, slow) == np.median(fast / slow) == 2.0
    assert np.median(fast) / np.median(slow) == 1.8


def test_a_comparison_has_each_figure_and_its_ratio_to_each_base() -> None:
    found = {"ours": [(100.0, 4.0), (300.0, 2.0), (200.0, 3.0)], "theirs": [(50.0, 8.0), (50.0, 8.0), (50.0, 3.0)]}
    table = rows(harness.comparison(found, {"images/s": ".0f", "CPU-ms": ".1f"}, "theirs", "who is not there"))
    assert table[0] == [
        "",
        "images/s, median (range)",
        "CPU-ms, median (range)",
        "images/s / theirs",
        "CPU-ms / theirs",
    ]
    assert table[2:] == [
        ["ours", "200 (100 .. 300)", "3.0 (2.0 .. 4.0)", "4.00", "0.50"],
        ["theirs", "50 (50 .. 50)", "8.0 (3.0 .. 8.0)", "1.00", "1.00"],
    ]


def test_a_table_formats_figures_and_marks_what_is_missing() -> None:
    lines = list(
        harness.table({"act": "", "seconds": ".1f", "MB": ",.0f"}, [("a", 1.26, 12345), ("b", None, "?"), ("c",)])
    )
    assert lines == [
        "| act | seconds | MB |",
        "|---|---:|---:|",
        "| a | 1.3 | 12,345 |",
        "| b | - | ? |",
        "| c | - | - |",
    ]


def test_a_result_says_question_day_command_machine_versions_and_options(run: Callable) -> None:
    code, text, _ = run("--depth", "56")
    assert code == 0
    assert text.startswith(f"# How fast is it, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}\n")
    assert "\n    python benchmarks/how.py --depth 56\n" in text
    assert f"{os.cpu_count()} cores (" in text
    assert f"python {platform.python_version()}," in text
    for package in ("torch", "ray", "pyarrow"):
        assert f"{package} {importlib.metadata.version(package)}," in text
    assert "Options: rounds 5, depth 56.\n" in text
    assert "\n5 rounds of depth 56\n" in text
    assert text.index("at the start") < text.index("5 rounds of") < text.index("at the end")
    assert "not a measurement" not in text


def test_a_quick_run_is_small_and_says_that_it_is_not_a_measurement(run: Callable) -> None:
    _, text, _ = run("--quick")
    assert "\n1 rounds of depth 20\n" in text
    assert "its figures are not a measurement" in text.partition("Options:")[0]
    assert "\n3 rounds of depth 20\n" in run("--quick", "--rounds", "3")[1]


def test_a_result_in_a_folder_is_named_by_script_machine_and_day(run: Callable, tmp_path: Path) -> None:
    _, text, _ = run("--result", str(tmp_path))
    (file,) = tmp_path.iterdir()
    today = datetime.datetime.now(datetime.UTC)
    assert re.fullmatch(rf"how_[a-z0-9-]+_{today:%Y%m%d}\.md", file.name)
    assert file.read_text() == text


def test_a_second_result_is_added_to_the_file_given(run: Callable, tmp_path: Path) -> None:
    file = tmp_path / "own.md"
    texts = [run("--result", str(file), "--depth", depth)[1] for depth in ("20", "56")]
    assert file.read_text() == "".join(texts)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--result", "/no/such/folder/how.md"), "make /no/such/folder first"),
        (("--rounds", "many"), "many"),
        (("--deph", "3"), "--depth"),
        (("--no-quick",), "--no-quick"),
    ],
)
def test_a_command_line_that_is_wrong_measures_nothing(run: Callable, arguments: tuple[str, ...], word: str) -> None:
    code, text, said = run(*arguments)
    assert (code, text) == (2, "")
    assert word in said
    assert len(said.splitlines()) == 1


def test_a_server_answers_within_the_block_and_is_gone_after_it(tmp_path: Path) -> None:
    (tmp_path / "health").write_text("well")
    serve = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with harness.server(lambda port: [*serve, str(port)], health="health", log=tmp_path / "log") as address:
        assert urllib.request.urlopen(f"{address}/health").read() == b"well"
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address}/health")


def test_a_server_that_ends_is_not_waited_for_and_its_last_words_are_told(tmp_path: Path) -> None:
    ends = [sys.executable, "-c", "raise SystemExit('the port is taken')"]
    with pytest.raises(RuntimeError, match="the port is taken"):  # noqa: SIM117
        with harness.server(lambda port: ends, health="health", log=tmp_path / "log"):
            pass
