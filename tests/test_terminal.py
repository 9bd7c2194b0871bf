"""What printing and signals do to a command. Oracle: the exit codes of a shell, and the bytes that come out of it."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from dist_resnet import terminal

JOBS = Path(__file__).parents[1] / "jobs"
COMMAND = f"""
import logging, sys, time
sys.path.insert(0, {str(JOBS.parent)!r})
from dist_resnet import cli, logs

def main():
    logs.configure()
    {{body}}

cli.run(main, advice="give the same command again")
"""
WHOLE = 'print("caf\\udce9 \\u00e9" + "x" * 70_000); logging.getLogger("dist_resnet").info("caf\\udce9 \\u00e9")'
PROGRESS = """
    from dist_resnet.ablation.board import Board
    from dist_resnet.launch.progress import ImageProgress
    board, progress = Board(), ImageProgress()
    progress.begin("reading caf\\udce9", 3)
    progress.advance(3)
    progress.say("caf\\udce9 \\u00e9")
    progress.close()
    board.say("caf\\udce9", "\\u00e9")
    board.draw([])
    board.close()
"""


def _shell(redirections: str, body: str = WHOLE, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a shell; its own exit code comes as a last line of the shell's standard output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    line = f'"$0" -c "$1" {redirections}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, COMMAND.format(body=body)],
        env=environment | variables,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "redirections",
    [
        "; echo $?",
        "| true; echo ${PIPESTATUS[0]}",
        "| head -c 5 > /dev/null; echo ${PIPESTATUS[0]}",
        "2>&1 | true; echo ${PIPESTATUS[0]}",
        "> /dev/full; echo $?",
        "2> /dev/full; echo $?",
        ">&-; echo $?",
        "2>&-; echo $?",
        "<&- >&- 2>&-; echo $?",
    ],
)
def test_printing_never_changes_an_exit_code(redirections: str):
    done = _shell(redirections, WHOLE + PROGRESS)
    assert done.stdout.splitlines()[-1] == b"0"
    assert b"Traceback" not in done.stderr
    assert b"rror" not in done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C"},
        {"LANG": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8"},
    ],
)
def test_what_an_encoding_lacks_is_escaped(variables: dict[str, str]):
    done = _shell("; echo $?", **variables)
    assert done.stdout.splitlines()[-1] == b"0"
    shown = {"ascii": b"caf\\xe9 \\xe9x", "latin-1": b"caf\\xe9 \xe9x"}.get(variables.get("PYTHONIOENCODING", ""))
    shown = b"caf\\xe9 \\xe9x" if "PYTHONUTF8" in variables else shown or "caf\\xe9 éx".encode()
    assert done.stdout.startswith(shown)
    assert b"INFO driver: caf\\xe9" in done.stderr
    assert b"rror" not in done.stderr


def test_output_that_a_full_disk_loses_is_told():
    assert b"its output is lost (No space left on device)" in _shell("> /dev/full").stderr


def test_a_descriptor_that_was_closed_is_never_a_files(tmp_path: Path):
    body = f'file = open({str(tmp_path / "data")!r}, "w"); print("printed"); sys.stderr.write("said"); file.close()'
    _shell(">&- 2>&-", body)
    assert (tmp_path / "data").read_text() == ""


def test_a_terminal_that_does_not_wait_loses_nothing():
    master, slave = pty.openpty()
    os.set_blocking(slave, False)
    program = COMMAND.format(body='print("x" * 100_000)')
    with subprocess.Popen([sys.executable, "-c", program], stdout=slave, stderr=subprocess.PIPE) as command:
        os.close(slave)
        read = 0
        while read < 100_000:
            read += os.read(master, 4096).count(b"x")
        assert command.wait() == 0
    os.close(master)


def test_a_stream_that_is_not_the_processs_own_stays(capsys: pytest.CaptureFixture[str]):
    before = sys.stdout, sys.stderr
    terminal.open_streams()
    assert (sys.stdout, sys.stderr) == before


def _signalled(body: str, *numbers: int) -> tuple[int, str]:
    """(exit code, standard error) of a command that gets signals each time it prints a line."""
    command = [sys.executable, "-uc", COMMAND.format(body=body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stderr is not None
        for number, _ in zip(numbers, job.stdout, strict=False):
            job.send_signal(number)
        return job.wait(timeout=60), job.stderr.read()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    "body",
    [
        'print("here"); time.sleep(20)',
        # Libraries that swallow it, or make another error of it, or an exit.
        'from dist_resnet.terminal import keeping_handlers\n    with keeping_handlers():\n        print("here")\n'
        "        try: time.sleep(20)\n        except BaseException: pass\n    time.sleep(20)",
        'print("here")\n    try: time.sleep(20)\n    except BaseException: raise ImportError("of C")',
        'print("here")\n    with cli.bad_input_exits():\n        try: time.sleep(20)\n'
        "        except KeyboardInterrupt as error: raise SystemExit(1) from error",
    ],
)
def test_a_signal_is_one_line_and_its_code(body: str, number: int, code: int):
    assert _signalled(body, number) == (code, "-c: interrupted; give the same command again\n")


def test_what_is_under_way_is_cleaned_up_and_a_second_signal_ends_it_at_once():
    body = 'try: print("here"); time.sleep(20)\n    finally:\n        print("cleaning"); time.sleep(20)'
    code, said = _signalled(body, signal.SIGINT, signal.SIGINT)
    assert code == 130
    assert said == ""


def test_what_is_being_written_is_written_once_and_whole():
    command = [sys.executable, "-c", COMMAND.format(body='print("y" * (1 << 20)); time.sleep(20)')]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.stdout is not None
        assert job.stderr is not None
        waiting, size = bytearray(4), fcntl.fcntl(job.stdout, fcntl.F_GETPIPE_SZ)
        while struct.unpack("i", waiting) != (size,):
            assert job.poll() is None
            fcntl.ioctl(job.stdout, termios.FIONREAD, waiting)
        job.send_signal(signal.SIGINT)
        written = job.stdout.read()
        assert job.wait(timeout=60) == 130
        assert job.stderr.read() == b"-c: interrupted; give the same command again\n"
    assert written == b"y" * (1 << 20) + b"\n"


def test_an_ignored_ctrl_c_stays_ignored():
    body = "print(signal.getsignal(2) == signal.SIG_IGN)"
    done = subprocess.run(
        ["bash", "-c", 'trap "" INT; exec "$0" -c "$1"', sys.executable, "import signal" + COMMAND.format(body=body)],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True\n", done.stderr


def test_handlers_of_a_library_are_undone():
    before = signal.getsignal(signal.SIGTERM)
    with terminal.keeping_handlers():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before
    elsewhere = threading.Thread(target=terminal.keeping_handlers().__enter__)
    elsewhere.start()
    elsewhere.join()


def test_a_working_directory_that_is_gone_is_said_before_anything_else(tmp_path: Path):
    (tmp_path / "gone").mkdir()
    program = "import os; os.rmdir(os.getcwd()); from dist_resnet import cli; cli.run(lambda: print('works'))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "gone", capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert done.stderr == '-c: the working directory is gone; cd to an existing one, such as by `cd "$PWD"`\n'
    assert done.stdout == ""
