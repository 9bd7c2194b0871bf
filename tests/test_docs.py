"""The pages under docs/. Oracle: the jobs' own command lines, and the files that there are."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from cluster.commands import commands_in, execution_of

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "cluster/README.md")]


@pytest.mark.parametrize("page", ["initial-weights.md", "operations.md", "reproduce.md", "signal-propagation.md"])
def test_every_command_of_a_job_is_one_that_the_job_takes(page):
    # Those that prepare images have command lines of their own; tests/test_readme.py reads them.
    commands = [words for words in commands_in((ROOT / "docs" / page).read_text()) if "jobs/prepare_" not in words[0]]
    assert commands
    for words in commands:
        execution_of(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_a_page_names_or_links_to_exists(page):
    text = page.read_text()
    named = re.findall(r"`((?:dist_resnet|jobs|tests|docker|cluster|benchmarks)/[\w./*-]+)", text)
    for name in named:
        assert list(ROOT.glob(name.rstrip("/"))), name
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in link or (page.parent / link).exists(), link


def _links(page: Path) -> list[tuple[Path, str]]:
    """The files that a page links to, each with the section; the page's own sections too."""
    found = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text())
    return [((page.parent / file).resolve() if file else page, section) for file, section in found if "://" not in file]


def _sections(page: Path) -> set[str]:
    """The names by which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*OTHERS, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_section_that_a_page_links_to_exists(page: Path):
    for file, section in _links(page):
        assert not section or section in _sections(file), (file.name, section)


def test_every_page_is_two_clicks_from_the_readme_or_nearer():
    near = {file for file, _ in _links(ROOT / "README.md")}
    reached = near | {file for page in near if page.suffix == ".md" for file, _ in _links(page)}
    assert {*OTHERS[1:], *PAGES} <= reached


def test_imagenet_is_given_by_quoted_globs_of_the_shards_that_its_preparation_writes():
    # As docs/data-format.md says, both splits lie in one folder; tests/data/test_prepare.py holds the job to the names.
    shards = {split: f"imagenet/{split}-00007-of-00290.parquet" for split in ("train", "validation")}
    pages = [ROOT / "README.md", *PAGES, *(ROOT / "jobs").glob("*.py")]
    pages += [path for path in (ROOT / "cluster").rglob("*") if path.is_file()]
    option = re.compile(r"\b(train|validation)(?:\s+|=)([\"']?)([^\s\"'`]*imagenet/[^\s\"'`]*)\2")
    found = [(page.name, *given) for page in pages for given in option.findall(page.read_text())]
    assert {"README.md", "reproduce.md", "rayjob-imagenet.yaml", "imagenet_preact200.py"} <= {
        name for name, *_ in found
    }
    for name, split, quote, glob in found:
        assert quote, (name, glob)
        assert [each for each, shard in shards.items() if fnmatch(shard, glob[glob.index("imagenet/") :])] == [split], (
            name
        )
