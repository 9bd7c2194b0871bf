"""The progress display. Oracle: lines read back from the stream, and a pseudo-terminal."""

import dataclasses
import io
import os
import pty
import re
import termios

import pytest

from dist_resnet.launch.progress import ImageProgress, TrainingProgress
from dist_resnet.tracking.records import Metrics, Record, Session, Straggler

SESSION = Session(start_step=0, total_steps=20, world_size=2, device="CPU")


def _records(steps: range) -> list[Record]:
    values = {"train/loss": 1.5, "train/top1_error": 0.25, "time/step_seconds": 0.5}
    return [SESSION, *(Metrics(step=step, values=values) for step in steps)]


def test_a_file_gets_plain_lines_with_images_loss_error_rate_and_time_left():
    stream = io.StringIO()
    TrainingProgress("run", 20, 32, stream=stream).show(_records(range(1, 11)))
    assert stream.getvalue().splitlines() == [
        "run: starting 20 steps on 2 workers (CPU)",
        "run: step 10/20, 320 images, loss 1.500, error 25.0%, 64.0 images/s, 0:00:05 left",
    ]


def test_a_resumed_run_shows_its_first_step():
    stream = io.StringIO()
    TrainingProgress("run", 20, 32, stream=stream).show([dataclasses.replace(SESSION, start_step=7)])
    assert "resuming after step 7 of 20 steps" in stream.getvalue()


def test_evaluations_are_shown():
    stream = io.StringIO()
    values = {"val/loss": 1.0, "val/top1_error": 0.055, "val/top1_error_320px": 0.05}
    TrainingProgress("run", 20, 32, stream=stream).show([Metrics(step=10, values=values)])
    assert stream.getvalue() == "run: step 10: validation top1 error 5.50%, top1 error 320px 5.00%\n"


def test_a_worker_that_holds_the_run_back_is_one_line():
    stream = io.StringIO()
    finding = Straggler(
        step=10,
        rank=2,
        machine="host-b",
        fraction=0.314,
        reason="computing",
        seconds_per_step=1.9,
        others_seconds_per_step=1.3,
    )
    TrainingProgress("run", 20, 32, stream=stream).show([finding, Straggler(step=15, rank=2, machine="host-b")])
    assert stream.getvalue().splitlines() == [
        "run: step 10: rank 2 on host-b holds the run back by 31%: it computes for 1.9 s a step, the others for 1.3 s",
        "run: step 15: rank 2 on host-b no longer holds the run back",
    ]


def test_a_terminal_gets_a_bar():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 160))
    with os.fdopen(theirs, "w") as stream:
        progress = TrainingProgress("run", 20, 32, stream=stream)
        progress.show(_records(range(1, 11)))
        progress.close()
        stream.write("END")
        stream.flush()
        shown = ""
        while "END" not in shown:
            shown += os.read(ours, 65536).decode()
    os.close(ours)
    assert "\x1b[?25l" not in shown  # the cursor stays
    shown = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert " 50% " in shown
    assert "320/640 images" in shown
    assert "loss 1.500, error 25.0%, 64.0 images/s, 0:00:05 left" in shown


def test_a_preparation_in_a_file_is_plain_lines(monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    progress = ImageProgress(stream=stream)
    progress.begin("finding images", None)
    progress.advance(50)
    clock[0] += 2
    progress.begin("writing shards", 1000)
    progress.say("3 shards were finished by an earlier start")
    clock[0] += 5
    progress.advance(100)
    clock[0] += 5
    progress.advance(100)
    clock[0] += 10
    progress.advance(800)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "finding images: 50 images, 25.0 images/s",
        "3 shards were finished by an earlier start",
        "writing shards: 200/1000 images, 20.0 images/s, 0:00:40 left",
        "writing shards: 1000/1000 images, 50.0 images/s, 0:00:00 left",
    ]


def test_before_the_first_image_there_is_no_time_left():
    stream = io.StringIO()
    progress = ImageProgress(stream=stream)
    progress.begin("writing shards", 1000)
    progress.close()
    assert stream.getvalue() == "writing shards: 0/1000 images, 0.0 images/s\n"


def test_a_preparation_in_a_terminal_is_a_bar():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 160))
    with os.fdopen(theirs, "w") as stream:
        progress = ImageProgress(stream=stream)
        progress.begin("writing shards", 1000)
        progress.advance(500)
        progress.close()
        stream.write("END")
        stream.flush()
        shown = ""
        while "END" not in shown:
            shown += os.read(ours, 65536).decode()
    os.close(ours)
    assert "\x1b[?25l" not in shown  # the cursor stays
    shown = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "writing shards  50% " in shown
    assert "500/1000 images" in shown
    assert " images/s, " in shown
