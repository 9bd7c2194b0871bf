"""The language of what people read. Oracle: the list below: phrases that readers stumbled over, and better ones."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(
        path
        for folder in ("cluster", "docker", "jobs", "dist_resnet", "benchmarks")
        for path in (ROOT / folder).rglob("*")
    ),
]
# Results are records of their day, locks and figures are made by tools.
SKIPPED = {"CHANGELOG.md", "results", "locks", "__pycache__"}
TEXTS = [
    path
    for path in READ
    if path.is_file()
    and not SKIPPED & set(path.parts)
    and path.suffix in {".md", ".py", ".yaml", ".json", ".sh", ".example"}
]

PHRASES = {
    # Not the names in files that earlier versions wrote.
    r'(?<!["./])[Pp]ictures?(?!")': "image",
    r"[Cc]olours?|[Cc]entred?|[Nn]ormalis\w*|[Bb]ehaviour": "color, center, normalize, behavior",
    r"lies|lying": "is stored, is",
    r"goes on|going on|went on": "continues, resumes",
    r"(?:is|are|was|were) told|tells? of|told of": "reports, logs, states",
    r"till": "until",
    r"shall": "must, or the plain present",
    r"stands? still|stood still": "hangs",
    r"(?:is|are) away": "is down, is unreachable",
    r"cannot be asked": "is unreachable",
    r"insisted": "must match",
    r"for ever|without end": "forever",
    r"asks for nothing": "needs nothing",
    r"such there (?:is|are)|what there (?:is|are)": "the ones that exist",
    r"mended|mend": "fixed, repair",
    r"anew": "again",
    r"is to be had|are to be had": "is available",
    r"without a word": "silently",
}


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_that_readers_stumbled_over_does_not_come_back(phrase: str):
    pattern = re.compile(rf"\b(?:{phrase})\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"write {PHRASES[phrase]} instead:\n" + "\n".join(found)


def test_the_texts_are_found():
    names = {str(path.relative_to(ROOT)) for path in TEXTS}
    assert {"README.md", "docs/operations.md", "jobs/runs.py", "dist_resnet/recipe.py", "docker/compose.yaml"} <= names
