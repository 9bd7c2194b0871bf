"""Every job's --help as a newcomer reads it. Oracle: the terminal's width, the job's own text, and words typed here."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from jobs.inside import run_inside

JOBS = Path(__file__).parents[2] / "jobs"
NAMES = sorted(path.stem for path in JOBS.glob("*.py"))


def _help(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = run_inside(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _options(text: str) -> str:
    """The boxes' content, on one line."""
    return " ".join(" ".join(line.strip("│ ") for line in text.splitlines() if line.startswith("│")).split())


@pytest.mark.parametrize("columns", [60, 120])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wider_than_the_terminal(name: str, columns: int, monkeypatch: pytest.MonkeyPatch):
    lines = _help(name, columns, monkeypatch).splitlines()
    assert [line for line in lines if len(line) > columns] == []
    boxed = [line for line in lines if line[:1] in ("╭", "╰", "│")]
    assert {line[0] + line[-1] for line in boxed} == {"╭╮", "╰╯", "││"}
    assert {len(line) for line in boxed} == {max(map(len, boxed))}


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_commands_at_every_width(name: str, monkeypatch: pytest.MonkeyPatch):
    examples = [_examples(_help(name, columns, monkeypatch)) for columns in (60, 80, 120)]
    assert examples[0]
    assert examples[0] == examples[1] == examples[2]
    assert all(words[0] == "python" and words[1].startswith("jobs/") for words in examples[0])


def _examples(text: str) -> list[list[str]]:
    """The words of each indented command, its lines joined as a shell joins them."""
    _, _, doc = text.partition("╭")[0].partition("\n\n")
    joined = doc.replace("\\\n", "")
    return [shlex.split(line) for line in joined.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_readable(name: str, monkeypatch: pytest.MonkeyPatch):
    options = _options(_help(name, 100, monkeypatch))
    assert re.findall(r"\(default: (?:None|True|False|)\)|\{None\}", options) == []
    assert re.findall(r"\(default: [^)]*\.0*[1-9]\d{4,}", options) == []


def test_the_demo_and_the_data_come_before_the_recipes_details(monkeypatch: pytest.MonkeyPatch):
    text = _help("imagenet_preact200", 80, monkeypatch)
    names = ("--demo", "--epochs", "--data.train ", "--execution.workers", "--execution.performance", "--model.depth ")
    order = [text.index(name, text.index("╭")) for name in names]
    assert order == sorted(order)
    assert text.index("--data.train ", text.index("╭")) < text.index("--data.train-digest")


def test_a_reader_that_leaves_early_ends_the_help_quietly():
    job = subprocess.Popen(
        [sys.executable, str(JOBS / "imagenet_preact200.py"), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert job.stdout is not None
    job.stdout.close()
    _, said = job.communicate(timeout=60)
    assert (job.returncode, said) == (0, b"")
