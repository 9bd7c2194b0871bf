"""Progress in a notebook. Oracle: what a real Jupyter kernel sends to its front end."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipykernel", reason="no Jupyter kernel is installed")
nbclient = pytest.importorskip("nbclient", reason="no client of Jupyter kernels is installed")
nbformat = pytest.importorskip("nbformat", reason="no client of Jupyter kernels is installed")

RUN = """
import threading
from dist_resnet.launch.progress import TrainingProgress
from dist_resnet.tracking.records import Metrics, Session
progress = TrainingProgress("run [1]", 20, 32)
values = {"train/loss": 1.5, "train/top1_error": 0.25, "time/step_seconds": 0.5}
session = Session(start_step=0, total_steps=20, world_size=2, device="CPU")
def show(steps):
    progress.show([session, *(Metrics(step=step, values=values) for step in steps)])
show(range(1, 6))
thread = threading.Thread(target=show, args=(range(6, 11),))
thread.start()
thread.join()
progress.close()
"""
PREPARATION = """
from dist_resnet.launch.progress import ImageProgress
progress = ImageProgress()
progress.begin("train", 10)
progress.advance(10)
progress.close()
"""
PROGRAM = """
from dist_resnet.terminal import program
print(program())
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """The outputs of each cell above."""
    folder = tmp_path_factory.mktemp("notebook")
    kernel = folder / "kernels" / "here" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": command, "display_name": "here", "language": "python"}))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (RUN, PREPARATION, PROGRAM)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH")))))
        nbclient.NotebookClient(notebook, kernel_name="here", timeout=100).execute()
    return [cell.outputs for cell in notebook.cells]


def test_a_run_has_one_bar_that_is_drawn_anew_in_place(cells):
    (shown,) = cells[0]
    assert shown["output_type"] == "display_data"
    assert "<pre" in shown["data"]["text/html"]
    text = shown["data"]["text/plain"]
    assert "run [1]" in text
    assert "starting 20 steps on 2 workers (CPU)" in text
    assert " 50%" in text
    assert "320/640 images loss 1.500, error 25.0%" in text


def test_a_preparation_has_one_too(cells):
    (shown,) = cells[1]
    assert "100%" in shown["data"]["text/plain"]
    assert "10/10 images" in shown["data"]["text/plain"]


def test_a_kernel_is_no_program(cells):
    (told,) = cells[2]
    assert told["text"] == "None\n"
