"""What GitHub reads. Oracles: check-jsonschema's own schemas of these files, bash, and the commands' own options.

The workflows themselves have not run: the project's address on GitHub is not known here.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs.inside import run_inside

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = ROOT / ".github" / "ISSUE_TEMPLATE"
FORMS = sorted(set(TEMPLATES.glob("*.yml")) - {TEMPLATES / "config.yml"})
FILES = [
    *((path, "vendor.github-workflows") for path in WORKFLOWS),
    *((path, "custom.github-workflows-require-timeout") for path in WORKFLOWS),
    *((path, "vendor.github-issue-forms") for path in FORMS),
    (TEMPLATES / "config.yml", "vendor.github-issue-config"),
    (ROOT / "CITATION.cff", "vendor.citation-file-format"),
]


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def _steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in _read(path)["jobs"].values() for step in job["steps"]]


def _check(schema: str, path: Path) -> subprocess.CompletedProcess[str]:
    checker = Path(sys.executable).parent / "check-jsonschema"
    return subprocess.run(
        [str(checker), "--builtin-schema", schema, "--default-filetype", "yaml", str(path)],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("path", "schema"), FILES, ids=lambda value: getattr(value, "name", value))
def test_files_are_of_their_schemas_and_others_are_not(path: Path, schema: str, tmp_path: Path):
    done = _check(schema, path)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / path.name
    broken.write_text(
        re.sub(r"(?m)^( *)(runs-on|timeout-minutes|body|blank_issues_enabled|authors):", r"\1\2x:", path.read_text())
    )
    assert _check(schema, broken).returncode == 1


def test_a_change_passes_what_ci_run_checks():
    steps = _steps(ROOT / ".github" / "workflows" / "ci.yml")
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_takes_no_more_than_it_needs(path: Path):
    workflow = _read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 180
        assert "latest" not in job["runs-on"]
    for step in _steps(path):
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", step["uses"])
        # What comes from outside is a variable of the shell's and no part of its program.
        assert "${{" not in step.get("run", "")
        assert subprocess.run(["bash", "-n"], input=step.get("run", ""), text=True, check=False).returncode == 0
    # What somebody else could read: only the token that GitHub makes for each run.
    assert "secrets." not in path.read_text()


def test_a_tag_makes_the_archives_and_both_images():
    path = ROOT / ".github" / "workflows" / "release.yml"
    assert _read(path)[True] == {"push": {"tags": ["v*"]}}  # `on`, as YAML 1.1 reads it
    program = "\n".join(step.get("run", "") for step in _steps(path))
    assert "uv build" in program.splitlines()
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for target in _read(path)["jobs"]["images"]["strategy"]["matrix"]["target"]:
        assert f" AS {target}\n" in dockerfile
    (build,) = re.findall(r"docker build .*", program)
    page = (ROOT / "docs" / "containers.md").read_text()
    assert set(re.findall(r"--[a-z-]+", build)) <= set(re.findall(r"--[a-z-]+", page))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_the_commands_that_a_form_asks_for_can_be_given(path: Path, tmp_path: Path):
    commands = re.findall(r"`(python [^`]+)`", path.read_text())
    assert commands or path.stem == "feature"
    for command in commands:
        words = [{"STORAGE": str(tmp_path)}.get(word, word) for word in shlex.split(command)]
        if words[1] == "-c":
            done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=100, cwd=ROOT)
            assert done.returncode == 0, done.stderr
            assert done.stdout
        else:
            done = run_inside(Path(words[1]).stem, *words[2:])
            assert done.returncode == 2
            assert "NAME" in done.stderr  # there is no such run; of an unknown option it would say another thing
