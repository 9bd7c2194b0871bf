"""The pages under docs/. Oracle: the jobs' own command lines, and the files that there are."""

import re
from pathlib import Path

import pytest
from cluster.commands import commands_in, execution_of

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", ["operations.md", "reproduce.md", "signal-propagation.md"])
def test_every_command_of_a_job_is_one_that_the_job_takes(page):
    # Those that prepare pictures have command lines of their own; tests/test_readme.py reads them.
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
