"""The result of gpu_evidence.py: a JSON file of what each row gave, and the same as Markdown."""

import datetime
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
from gpu_rows import ROWS

from dist_resnet.tracking import provenance

_ASKED = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"


class Result:
    """What each row gave, on one card, written after each."""

    def __init__(self, folder: Path, *, toy: bool) -> None:
        """Reads what earlier calls wrote to the folder."""
        self._toy = toy
        self._path = folder / f"gpu_evidence_{'rehearsal_' if toy else ''}{harness.machine_name()}.json"
        self.rows: dict[str, dict[str, Any]] = json.loads(self._path.read_text()) if self._path.exists() else {}

    @property
    def markdown(self) -> Path:
        """The file for readers."""
        return self._path.with_suffix(".md")

    def is_done(self, name: str) -> bool:
        """Whether a row has all its figures."""
        lines = self.rows.get(name, {}).get("lines")
        return lines is not None and all(line.get("state", "finished") in ("finished", "diverged") for line in lines)

    def add(self, name: str, found: dict[str, Any], seconds: float) -> None:
        """Writes what a row gave. A failure does not replace earlier figures."""
        if "lines" not in found and "lines" in self.rows.get(name, {}):
            found = self.rows[name] | found
        self.rows[name] = found | {
            "seconds": round(seconds, 1),
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "on paper": ROWS[name].on_paper,
            "machine": harness.machine(),
            "gpu": gpu(),
            **provenance.collect(),
        }
        _write(self._path, json.dumps(self.rows, indent=1))
        _write(self.markdown, "".join(f"{line}\n" for line in self._lines()))

    def _lines(self) -> Iterator[str]:
        yield "# What GPUs give, measured by gpu_evidence.py\n"
        if self._toy:
            yield "**A rehearsal at toy size: its figures are not a measurement.**\n"
        yield from self._surroundings()
        for name in (name for name in ROWS if "lines" in self.rows.get(name, {})):
            yield from _table(name, self.rows[name])
        yield "\n## Not measured\n"
        for name in ROWS:
            row = self.rows.get(name, {})
            if "lines" not in row:
                reason = f"needs {row['needs']}" if "needs" in row else row.get("error", "no time was left")
                yield f"- {name}: {reason}"

    def _surroundings(self) -> Iterator[str]:
        newest = max(self.rows.values(), key=lambda row: row["when"])
        versions = [f"{key.partition('.')[2]} {value}" for key, value in newest.items() if key.startswith("version.")]
        commits = sorted({row["commit"] for row in self.rows.values()})
        yield f"{newest['machine']}; {', '.join(versions)}; commit {', '.join(commits)}; last row {newest['when']}."
        if newest["gpu"]:
            yield f"{', '.join(f'{key} {value}' for key, value in newest['gpu'].items())} after it."


def _table(name: str, row: dict[str, Any]) -> Iterator[str]:
    clock = f", SM clock {row['gpu']['clocks.sm']} after it" if row["gpu"] else ""
    yield f"\n## {name}\n"
    yield f"{row['seconds']} s, {row['when']}{clock}. On paper: {row['on paper'] or 'no estimate'}."
    if "error" in row:
        yield f"The last try failed: {row['error']}"
    yield ""
    heads = {head: ".4g" for line in row["lines"] for head in line}
    yield from harness.table(heads, ([line.get(head) for head in heads] for line in row["lines"]))


def gpu() -> dict[str, str]:
    """The card, its clocks and its power now; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return {}
    asked = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()
    return dict(zip(_ASKED.split(","), (cell.strip() for cell in found[0].split(",")), strict=True)) if found else {}


def _write(path: Path, text: str) -> None:
    """Replaces a file as a whole, so that a call that is killed loses nothing."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
