"""jobs/predict.py as a command. Oracle: the served model on the same bytes, and the file of an undisturbed run."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs.inside import run_inside
from oracle.images import jpeg, smooth
from PIL import Image

from dist_resnet.registry.pull import pull_predictor

JOB = Path(__file__).parents[2] / "jobs" / "predict.py"
NAMES = ["horizontal stripes", "vertical stripes", "diagonal stripes", "checkerboard"]


def _start(*arguments: object) -> subprocess.Popen[str]:
    command = ["env", "--default-signal=INT", sys.executable, str(JOB), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(*arguments: object) -> str:
    """What a job that succeeds writes to standard output."""
    job = _start(*arguments)
    told, said = job.communicate()
    assert job.returncode == 0, said
    return told


def _wait_for(job: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _rows(file: Path) -> list[dict[str, Any]]:
    return pq.read_table(file).to_pylist()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images, one of them turned by its EXIF data, and a page in place of an image."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(6):
        (folder / "more" / f"{number}.jpg").write_bytes(jpeg(smooth(40 + number, 60, number)))
    exif, turned = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(smooth(40, 60, 9)).save(turned, "JPEG", exif=exif)
    (folder / "a.jpg").write_bytes(turned.getvalue())
    (folder / "page.jpg").write_bytes(b"<html>not found</html>")
    return folder


@pytest.mark.ray
@pytest.mark.parametrize("model", ["run", "checkpoint", "registered"])
def test_the_answers_are_those_of_the_served_model(
    model: str, ray_cluster: str, published_run: dict[str, Any], photos: Path, tmp_path: Path
):
    run, registry = published_run["run"], published_run["registry"]
    (step,) = Path(run, "checkpoints").glob("step_*")
    source = {"run": run, "checkpoint": str(step), "registered": "models:/preact-resnet8/1"}[model]
    options = ["--model", source, "--tracking-uri", registry, "--images", str(photos), "--workers", "2"]
    output = tmp_path / "out.parquet"
    done = run_inside("predict", *options, "--output", str(output), "--decode-on", "pillow", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{output}: 8 images"
    assert done.stdout.splitlines()[1].startswith(f"1 of them could not be read; the first: {photos}/page.jpg (")
    rows = _rows(output)
    files = [photos / "a.jpg", *sorted((photos / "more").iterdir()), photos / "page.jpg"]
    assert [row.pop("path") for row in rows] == list(map(str, files))
    served = pull_predictor("models:/preact-resnet8/1", tracking_uri=registry, device="cpu")
    expected = served.predict([file.read_bytes() for file in files])
    for row, one in zip(rows, expected, strict=True):
        assert row.pop("probabilities") == pytest.approx(one.pop("probabilities"), abs=1e-5)
        assert row == one
    assert set(rows[0]["names"]) == set(NAMES)


@pytest.mark.ray
def test_a_csv_file_has_the_same_answers(ray_cluster: str, published_run: dict[str, Any], photos: Path, tmp_path: Path):
    options = ["--model", published_run["run"], "--images", str(photos / "a.jpg"), str(photos / "more" / "*")]
    options += ["--device", "cpu", "--top-k", "2", "--no-exif-rotation"]
    for ending in ("csv", "parquet"):
        done = run_inside("predict", *options, "--output", str(tmp_path / f"out.{ending}"))
        assert (done.returncode, done.stdout) == (0, f"{tmp_path}/out.{ending}: 7 images\n"), done.stderr
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    for row, one in zip(found, _rows(tmp_path / "out.parquet"), strict=True):
        assert row["path"] == one["path"]
        assert [int(row[f"class_{rank}"]) for rank in (1, 2)] == one["classes"]
        assert [row[f"name_{rank}"] for rank in (1, 2)] == one["names"]
        assert [float(row[f"probability_{rank}"]) for rank in (1, 2)] == pytest.approx(one["probabilities"])
        assert row["error"] == ""


@pytest.mark.ray
def test_a_killed_job_continues_to_the_same_file(published_run: dict[str, Any], tmp_path: Path):
    images = [jpeg(smooth(32, 32, number)) for number in range(50)] * 80
    images[70] = b"rubbish"
    pq.write_table(pa.table({"image": images}), tmp_path / "images.parquet", row_group_size=1000)
    options = ["--model", published_run["run"], "--images", tmp_path / "images.parquet", "--workers", "1"]
    options += ["--device", "cpu"]
    output, parts = tmp_path / "out.parquet", tmp_path / "out.parquet.parts"
    job = _start(*options, "--output", output)
    _wait_for(job, lambda: len(list(parts.glob("part-*.parquet"))) >= 3)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    finished = {file.name: file.stat().st_mtime_ns for file in parts.glob("part-*-of-00063.parquet")}
    assert 3 <= len(finished) < 63
    assert not output.exists()
    other = run_inside("predict", *map(str, options), "--output", str(output), "--top-k", "1")
    assert other.returncode == 2
    assert f"{output} is half made with other top k; give the same again, another --output" in other.stderr
    again = _start(*options, "--output", output)
    _wait_for(again, lambda: len(list(parts.glob("part-*.parquet"))) > len(finished))
    kept = {name: (parts / name).stat().st_mtime_ns for name in finished}
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert kept == finished
    assert f"{len(finished)} of 63 parts were finished by an earlier start" in said
    _finish(*options, "--output", tmp_path / "undisturbed.parquet")
    assert output.read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()
    assert [row["path"] for row in _rows(output)] == [f"{tmp_path}/images.parquet#{n}" for n in range(4000)]
    assert [number for number, row in enumerate(_rows(output)) if row["error"]] == [70]
    assert not parts.exists()


@pytest.mark.ray
def test_images_and_output_on_an_object_store(published_run: dict[str, Any], photos: Path, tmp_path: Path, s3: str):
    import boto3

    client = boto3.client("s3")
    for file in photos.rglob("*.jpg"):
        client.put_object(Bucket="bucket", Key=f"photos/{file.relative_to(photos)}", Body=file.read_bytes())
    options = ["--model", published_run["run"], "--device", "cpu", "--workers", "1", "--images"]
    told = _finish(*options, f"{s3}/photos", "--output", f"{s3}/out.parquet")
    assert told.startswith(
        f"{s3}/out.parquet: 8 images\n1 of them could not be read; the first: {s3}/photos/page.jpg ("
    )
    _finish(*options, photos, "--output", tmp_path / "out.parquet")
    stored = pq.read_table(pa.BufferReader(client.get_object(Bucket="bucket", Key="out.parquet")["Body"].read()))
    expected = _rows(tmp_path / "out.parquet")
    assert stored.to_pylist() == [row | {"path": row["path"].replace(str(photos), f"{s3}/photos")} for row in expected]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"--images": "{0}/absent"}, "{0}/absent has no images; give --images a folder, files or a glob"),
        ({"--images": "s3://me:secret@bucket/x"}, "--images contains a password"),
        ({"--output": "{0}/out.json"}, "--output must end in .parquet or .csv, got {0}/out.json"),
        ({"--output": "{0}/there.csv"}, "{0}/there.csv exists already; give another --output, or delete it"),
        ({"--model": "{0}/absent"}, "{0}/absent"),
        ({"--top-k": "0"}, "--top-k must be at least 1, got 0"),
        ({"--workers": "0"}, "--workers must be at least 1, got 0"),
        ({"--decode-on": "film"}, "film"),
    ],
)
def test_what_cannot_be_predicted_exits_2_with_one_line_before_ray_starts(
    published_run: dict[str, Any], photos: Path, tmp_path: Path, change: dict[str, str], complaint: str
):
    (tmp_path / "there.csv").write_text("mine")
    options = {"--model": published_run["run"], "--images": str(photos), "--output": str(tmp_path / "out.csv")} | change
    before = sorted(tmp_path.rglob("*"))
    ended = run_inside("predict", *(word.format(tmp_path) for option in options.items() for word in option))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert complaint.format(tmp_path) in ended.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.ray
def test_images_of_which_none_can_be_read_are_an_error_and_leave_nothing(
    ray_cluster: str, published_run: dict[str, Any], tmp_path: Path
):
    (tmp_path / "a.jpg").write_bytes(b"rubbish")
    options = ["--model", published_run["run"], "--images", str(tmp_path / "a.jpg"), "--device", "cpu"]
    ended = run_inside("predict", *options, "--output", str(tmp_path / "out.csv"))
    assert ended.returncode == 2
    assert f"none of the 1 images can be read, the first is {tmp_path}/a.jpg (the image" in ended.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["a.jpg"]


def test_weights_of_another_network_are_refused_before_ray_starts(
    published_run: dict[str, Any], photos: Path, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(published_run["run"], run)
    record = json.loads((run / "recipe.json").read_text())
    record["recipe"]["model"]["depth"] = 14
    (run / "recipe.json").write_text(json.dumps(record))
    ended = run_inside("predict", "--model", str(run), "--images", str(photos), "--output", str(tmp_path / "out.csv"))
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert f"the weights of {run} are of another network than its recipe's: " in ended.stderr
    assert not list(tmp_path.glob("out*"))
