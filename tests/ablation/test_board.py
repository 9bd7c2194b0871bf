"""The display of a sweep. Oracle: lines read back from the stream, and a pseudo-terminal."""

import io
import os
import pty
import termios
from types import SimpleNamespace
from typing import Any

from dist_resnet.ablation.board import Board


def _trial(key: str, **fields: Any) -> Any:
    plan = SimpleNamespace(recipe=SimpleNamespace(seed=3))
    given = {"status": "running", "is_over": False, "step": 50, "total": 200, "error": 0.25, "seconds_left": 75.0}
    return SimpleNamespace(name=key, cells=[SimpleNamespace(key=key)], plan=plan, **(given | fields))


def test_a_file_gets_plain_lines():
    stream = io.StringIO()
    board = Board(stream)
    board._lines_at -= 1000
    board.say("first", "starting")
    board.draw([_trial("first"), _trial("second", status="waiting")])
    board.close()
    assert stream.getvalue() == "first: starting\nfirst: step 50/200, validation error 25.00%, 0:01:15 left\n"


def test_a_terminal_gets_a_table_of_cell_seed_iteration_error_and_time_left():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    with os.fdopen(theirs, "w") as stream:
        board = Board(stream)
        board.draw(
            [
                _trial("table1/dropout/20", status="fail", is_over=True, step=200, error=0.9),
                _trial("table1/original/20"),
                _trial("table1/conv1x1/20", status="waiting", step=0, error=None),
            ]
        )
        board.close()
        stream.write("END")
        stream.flush()
        shown = ""
        while "END" not in shown:
            shown += os.read(ours, 65536).decode()
    os.close(ours)
    assert "1 of 3 trials over, 1 running, 1 waiting" in shown
    row = next(line for line in shown.splitlines() if "table1/original/20" in line)
    assert [word for word in row.split() if word.isascii()] == [
        "table1/original/20",
        "3",
        "50/200",
        "25.00%",
        "0:01:15",
    ]
    assert "fail (90.00%)" in shown
