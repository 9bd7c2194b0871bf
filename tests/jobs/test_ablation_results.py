"""The job that writes down what sweeps gave. Oracle: the issue's own keys, exit codes and lines, files by hand."""

import json
import re
from pathlib import Path

import pytest
from ablation.sweeps import MODEL, cell, write_sweep, write_trial
from jobs.inside import run_inside

from dist_resnet.ablation.pages import BEGIN, END
from dist_resnet.tracking.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Full pre-activation of the replication, finished, and a row of which nothing is there."""
    directory = RunDirectory(str(tmp_path / "sweep"))
    model = MODEL | {"placement": "full_preactivation"}
    names = {"table": "replication", "depth": 20}
    row = "identity-full_preactivation"
    entries = [
        cell(row, "pre", key=f"replication/{row}/20", paper_error=8.08, model=model, **names),
        cell("identity-original", "waits", key="replication/identity-original/20", paper_error=8.56, **names),
    ]
    write_trial(directory, "pre", {32_000: 9.0, 64_000: 8.1}, end="finished")
    write_sweep(directory, entries)
    return tmp_path / "sweep"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text(f"# By hand\n\n{BEGIN}\n{END}\n")
    return page


def _options(tmp_path: Path, page: Path) -> tuple[str, ...]:
    return ("--images", "tests", "--results", str(tmp_path / "out"), "--page", str(page), "--date", "20261125")


def test_files_are_written_from_the_journals_and_the_sweep_is_left_alone(sweep: Path, page: Path, tmp_path: Path):
    before = {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()}
    done = run_inside("ablation_results", str(sweep), *_options(tmp_path, page))
    assert done.returncode == 0, done.stderr
    name = "replication_resnet20_20261125"
    figure = "results_resnet20_64000_placements.png"
    written = [tmp_path / "out" / f"{name}{end}" for end in (".json", "_curves.csv", ".md")]
    assert done.stdout.split() == [str(path) for path in (*written, page, page.parent / "images" / figure)]
    (found,) = json.loads(written[0].read_text())["cells"]
    expected = {
        "cell": "identity-full_preactivation",
        "depth": 20,
        "iterations": 64_000,
        "seed": 0,
        "top1_error": 8.1 / 100,
        "published": 0.0808,
        "restarts": 0,
    }
    assert {key: found[key] for key in expected} == expected
    assert len(written[1].read_text().splitlines()) == 1 + 2
    text = page.read_text()
    assert text.startswith("# By hand\n")
    assert "identity, full pre-activation | 8.10 |" in text
    assert (page.parent / "images" / figure).read_bytes().startswith(b"\x89PNG")
    assert {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()} == before
    for path in (*written, page):
        assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{tmp}/nothing"], "no sweep.json under"),
        (["{tmp}/sweep", "{tmp}/sweep"], "two sweeps are called sweep"),
        ([], "no sweep was given"),
        (["{tmp}/sweep", "--date", "25.11.2026"], "date must be YYYYMMDD, such as 20261125, got 25.11.2026"),
        (["{tmp}/sweep", "--page", "{tmp}/sweep/sweep.json"], "must have the lines"),
        (["{tmp}/sweep", "--page", "{tmp}/none.md"], "none.md"),
    ],
)
def test_bad_input_exits_with_2_and_one_line_and_writes_nothing(sweep, page, tmp_path, arguments, complaint):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    arguments = [word.format(tmp=tmp_path) for word in arguments]
    done = run_inside("ablation_results", *_options(tmp_path, page), *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_page_for_readers_has_its_markers():
    text = (ROOT / "docs" / "results.md").read_text()
    assert len(re.findall(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, flags=re.DOTALL)) == 1
