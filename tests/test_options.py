"""--help as a terminal shows it. Oracle: the lines typed here, and the width that the terminal claims to have."""

import io
import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
import tyro

from dist_resnet import options

DOC = r"""Trains a network, which takes a title of more than sixty columns in this example.

    python jobs/job.py --demo
    python jobs/job.py --data.train "/data/imagenet/all of train-*.parquet" \
        --data.validation "/data/imagenet/validation-*.parquet" --execution.workers 8
    python jobs/job.py --note 'one two' --data.train x --data.validation "/data/imagenet/validation-*.parquet" 3

The error is 20.7 %
after 90 epochs.

- one item of a list, with so many words
  in it that it continues on a second line
- another
"""


@dataclass(frozen=True, kw_only=True)
class Inner:
    name: str = "x"
    """A name."""


@dataclass(frozen=True, kw_only=True)
class Part:
    folder: Inner = field(default_factory=Inner)
    rate: float = 1 / 97
    """A rate
    of two lines."""
    seldom: bool = field(default=True, metadata={"rare": True})
    """A rare switch."""
    pair: tuple[float, float] = (3 / 4, 4 / 3)
    """Two numbers."""


@dataclass(frozen=True, kw_only=True)
class Options:
    kind: Annotated[Literal["a", "b"], options.POSITIONAL]
    """Which."""
    part: Part = field(default_factory=Part, metadata={"rare": True})
    flat: Annotated[Part, options.FLAT] = field(default_factory=Part)
    folder: str | None = None
    """Where it is stored. Unset: here."""
    sizes: tuple[int, ...] | None = None
    """Sizes in pixels. Unset: all."""
    choice: Literal["x", "y"] | None = None
    """A choice. Unset: either."""
    names: tuple[str, ...] = ()
    """Names."""
    demo: Annotated[bool, options.FLAG] = False
    """A demo."""


def _help(monkeypatch: pytest.MonkeyPatch, columns: int, *, stream: io.TextIOWrapper | None = None) -> str:
    stream = stream or io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["jobs/job.py"])
    with pytest.raises(SystemExit) as end:
        options.parse(Options, ["--help"], doc=DOC, default=None)
    assert end.value.code == 0
    stream.seek(0)
    return stream.read()


@pytest.mark.parametrize("columns", [60, 64, 80, 100, 120])
def test_nothing_is_wider_than_the_terminal_and_every_box_is_closed(columns: int, monkeypatch: pytest.MonkeyPatch):
    lines = _help(monkeypatch, columns).splitlines()
    assert [line for line in lines if len(line) > columns] == []
    corners = [line[0] + line[-1] for line in lines if line[:1] in ("╭", "╰", "│")]
    assert set(corners) == {"╭╮", "╰╯", "││"}
    assert corners.count("╭╮") == corners.count("╰╯") > 2


def test_commands_that_fit_keep_their_lines(monkeypatch: pytest.MonkeyPatch):
    text = _help(monkeypatch, 120)
    assert "\n".join(DOC.splitlines()[2:6]) in text


def test_commands_that_are_too_wide_continue_in_lines_that_a_shell_joins(monkeypatch: pytest.MonkeyPatch):
    assert _help(monkeypatch, 60).split("\n\n")[2] == "\n".join(
        [
            "    python jobs/job.py --demo",
            "    python jobs/job.py --data.train \\",
            '        "/data/imagenet/all of train-*.parquet" \\',
            "        --data.validation \\",
            '        "/data/imagenet/validation-*.parquet" \\',
            "        --execution.workers 8",
            "    python jobs/job.py --note 'one two' --data.train x \\",
            "        --data.validation \\",
            '        "/data/imagenet/validation-*.parquet" 3',
        ]
    )


def test_prose_fills_the_width_and_lists_keep_their_items(monkeypatch: pytest.MonkeyPatch):
    paragraphs = _help(monkeypatch, 60).split("\n\n")
    assert paragraphs[0] == "usage: jobs/job.py [-h] [OPTIONS] {a,b}"
    assert paragraphs[1].startswith("Trains a network, which takes a title of more than sixty\ncolumns")
    assert paragraphs[3] == "The error is 20.7 % after 90 epochs."
    assert paragraphs[4] == (
        "- one item of a list, with so many words in it that it\n  continues on a second line\n- another"
    )


def test_defaults_can_be_read_and_unset_options_say_what_holds(monkeypatch: pytest.MonkeyPatch):
    lines = [" ".join(line.strip("│ ").split()) for line in _help(monkeypatch, 100).splitlines()]
    text = " ".join(lines)
    for shown in (
        "--rate FLOAT A rate of two lines. (default: 0.01031)",
        "A rare switch. (default: on)",
        "Two numbers. (default: 0.75 1.333)",
        "--folder STR Where it is stored. Unset: here.",
        "--sizes INT [INT ...] Sizes in pixels. Unset: all.",
        "--choice {x,y} A choice. Unset: either.",
        "Names. (default: none)",
        "--demo A demo. (default: off)",
    ):
        assert shown in text
    assert "None" not in text


def test_rare_options_and_groups_come_last(monkeypatch: pytest.MonkeyPatch):
    text = _help(monkeypatch, 100)
    names = ("--rate", "--pair", "--folder", "--demo", "--seldom", "part options", "--part.pair", "--part.seldom")
    order = [text.index(name, text.index("options ─")) for name in names]
    assert order == sorted(order)


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_only_a_terminal_gets_colors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" not in _help(monkeypatch, 80)
    assert "\x1b[" in _help(monkeypatch, 80, stream=_Terminal(io.BytesIO(), encoding="utf-8"))


def test_a_terminal_without_frames_gets_plain_rules(monkeypatch: pytest.MonkeyPatch):
    text = _help(monkeypatch, 60, stream=io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 60


def test_what_is_given_reaches_flat_and_nested_fields():
    given = ["b", "--rate", "2", "--part.rate", "3", "--sizes", "1", "2", "--folder.name", "y"]
    found = options.parse(Options, given, doc="", default=None)
    assert (found.kind, found.flat.rate, found.part.rate, found.sizes, found.folder) == ("b", 2, 3, (1, 2), None)
    assert (found.flat.folder.name, found.part.folder.name) == ("y", "x")


def test_a_union_of_classes_is_one_command_for_each():
    commands = (
        Annotated[Inner, tyro.conf.subcommand("inner")] | Annotated[Part, tyro.conf.subcommand("part")]  # pyrefly: ignore
    )
    assert options.parse(commands, ["part", "--rate", "2"], doc="", default=None) == Part(rate=2)
    assert options.parse(commands, ["inner", "--name", "y"], doc="", default=None) == Inner(name="y")
