"""What becomes of answers. Oracle: the answers as written here, read back by pyarrow and the csv module."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dist_resnet.launch.prediction.classifier import Answers
from dist_resnet.launch.prediction.results import Results, check_output, table_of

NAMES = ["cat, tabby", 'the "dog"', "emu"]
JOB = {"images": "5", "model": "a", "top_k": 2}


def _answers(count: int, errors: dict[int, str] | None = None) -> Answers:
    classes = np.array([[number % 3, (number + 1) % 3] for number in range(count)], np.int32)
    shares = np.array([[0.7 - number / 100, 0.1] for number in range(count)], np.float32)
    return Answers(classes=classes, probabilities=shares, errors=errors or {})


def _write(output: Path | str, errors: dict[int, str] | None = None) -> Results:
    """Both parts of a job of three and two images."""
    results = Results(str(output), num_parts=2, top_k=2)
    with results.locked():
        assert results.claim(JOB) == set()
        results.write(0, table_of(["/a", "/b\nc", "/c"], [_answers(1), _answers(2, errors)], NAMES))
        results.write(1, table_of(["/d", "/e"], [_answers(2, errors)], NAMES))
    return results


def test_a_parquet_file_has_a_row_for_each_image(tmp_path: Path):
    found = _write(tmp_path / "out.parquet", {1: "torn"}).finish()
    assert (found.images, found.unreadable, found.first_error) == (5, 2, "/c (torn)")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["path"] for row in rows] == ["/a", "/b\nc", "/c", "/d", "/e"]
    assert [row["error"] for row in rows] == [None, None, "torn", None, "torn"]
    assert rows[0]["classes"] == [0, 1]
    assert rows[0]["names"] == NAMES[:2]
    assert rows[0]["probabilities"] == pytest.approx([0.7, 0.1])
    assert (rows[2]["classes"], rows[2]["names"], rows[2]["probabilities"]) == ([], [], [])
    assert [one.name for one in tmp_path.iterdir()] == ["out.parquet"]


def test_a_csv_file_has_columns_for_each_rank(tmp_path: Path):
    _write(tmp_path / "out.csv", {0: "torn, twice"}).finish()
    with (tmp_path / "out.csv").open(newline="") as file:
        first, second, *_ = csv.DictReader(file)
    assert list(first) == ["path", "class_1", "name_1", "probability_1", "class_2", "name_2", "probability_2", "error"]
    assert np.float32(first["probability_1"]) == np.float32(0.7)
    assert (first["path"], first["class_1"], first["name_1"], first["name_2"]) == ("/a", "0", *NAMES[:2])
    assert second == {"path": "/b\nc", "error": "torn, twice"} | dict.fromkeys(list(first)[1:-1], "")


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_the_output_is_written_to_an_object_store(s3: str, ending: str, tmp_path: Path):
    import boto3

    output = f"{s3}/{tmp_path.name}/out.{ending}"
    _write(output).finish()
    _write(tmp_path / f"out.{ending}").finish()
    listed = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix=f"{tmp_path.name}/out")["Contents"]
    assert [one["Key"].rpartition("/")[2] for one in listed] == [f"out.{ending}"]
    stored = boto3.client("s3").get_object(Bucket="bucket", Key=listed[0]["Key"])["Body"].read()
    assert stored == (tmp_path / f"out.{ending}").read_bytes()


def test_another_start_of_the_same_job_has_the_finished_parts(tmp_path: Path):
    _write(tmp_path / "out.parquet")
    again = Results(str(tmp_path / "out.parquet"), num_parts=2, top_k=2)
    assert again.claim(JOB) == {0, 1}
    (tmp_path / "out.parquet.parts" / "part-00001-of-00002.parquet").unlink()
    assert again.claim(JOB) == {0}


@pytest.mark.parametrize("change", [{"model": "b"}, {"images": "6"}, {"top_k": 1}])
def test_another_job_does_not_continue(tmp_path: Path, change: dict):
    _write(tmp_path / "out.parquet")
    name = next(iter(change)).replace("_", " ")
    with pytest.raises(ValueError, match=f"half made with other {name}; give the same again, another --output, or"):
        Results(str(tmp_path / "out.parquet"), num_parts=2, top_k=2).claim(JOB | change)


def test_an_output_that_exists_is_kept_and_refused(tmp_path: Path):
    file = tmp_path / "out.parquet"
    file.write_text("mine")
    results = Results(str(file), num_parts=2, top_k=2)
    with results.locked(), pytest.raises(ValueError, match="exists already; give another --output, or delete it"):
        results.claim(JOB)
    assert file.read_text() == "mine"
    assert [one.name for one in tmp_path.iterdir()] == ["out.parquet"]


def test_a_kill_between_the_output_and_the_end_is_repaired(tmp_path: Path):
    _write(tmp_path / "out.parquet").finish()
    content = (tmp_path / "out.parquet").read_bytes()
    (tmp_path / "out.parquet").unlink()
    results = _write(tmp_path / "out.parquet")
    (tmp_path / "out.parquet").write_bytes(content)
    assert results.claim(JOB) == {0, 1}
    assert results.finish().images == 5
    assert [one.name for one in tmp_path.iterdir()] == ["out.parquet"]


def test_two_processes_do_not_write_one_output(tmp_path: Path):
    first, second = (Results(str(tmp_path / "out.parquet"), num_parts=2, top_k=2) for _ in range(2))
    with first.locked():
        first.claim(JOB)
        with pytest.raises(ValueError, match="is being written by process"), second.locked():
            pass
        assert first.claim(JOB) == set()


def test_an_output_without_any_answer_is_not_written(tmp_path: Path):
    results = Results(str(tmp_path / "out.csv"), num_parts=1, top_k=2)
    results.claim(JOB)
    results.write(0, table_of(["/a", "/b"], [_answers(2, {0: "torn", 1: "cut"})], NAMES))
    with pytest.raises(ValueError, match=r"none of the 2 images can be read, the first is /a \(torn\); give others"):
        results.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out", "out.json", "out.parquet.gz"])
def test_an_output_of_another_format_is_refused(name: str):
    with pytest.raises(ValueError, match=rf"--output must end in .parquet or .csv, got {name}"):
        check_output(name)


def test_a_folder_as_output_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(ValueError, match="is a folder; give a file"):
        check_output(str(tmp_path / "a.csv"))
