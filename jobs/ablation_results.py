r"""Writes the results of sweeps, from their journals, as JSON, CSV and pages with figures.

    python jobs/ablation_results.py ~/dist_resnet/depth20-short ~/dist_resnet/depth20-full \
        --images "CIFAR-10, lossless"

Sweeps may have different lengths and may still be running; unfinished trials are listed as such. The command writes
`replication_resnet20_DATE.json`, `..._curves.csv` and `.md` into --results, and the figures and the part between the
markers of --page. It does not change the sweeps.
"""

import datetime
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from dist_resnet import cli, logs


@dataclass(frozen=True, kw_only=True)
class Options:
    sweeps: Annotated[tuple[str, ...], cli.POSITIONAL] = field(metadata={"metavar": "SWEEP [SWEEP ...]"})
    """Directories of sweeps, STORAGE/NAME: local paths or URIs of object stores."""
    images: str
    """The training images in a few words, for captions, such as "CIFAR-10, lossless"."""
    results: Path = Path("benchmarks/results")
    """Folder for the JSON, the CSV and their page."""
    page: Path | None = Path("docs/results.md")
    """Page for readers, whose part between the markers is replaced. None: no page."""
    date: str | None = None
    """Date in the file names, YYYYMMDD. Unset: today."""


def main() -> None:
    """Reads the sweeps and writes the files."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    with cli.bad_input_exits():
        for path in write(options):
            print(path)


def write(options: Options) -> list[Path]:
    """Writes all files and returns their paths. If anything is wrong, writes nothing."""
    from dist_resnet.ablation import pages
    from dist_resnet.ablation.record import read_record, to_csv, to_json
    from dist_resnet.tracking.run_directory import RunDirectory

    date = _date(options.date)
    record = read_record([RunDirectory(uri) for uri in options.sweeps])
    depths = "_".join(str(depth) for depth in sorted({entry.cell.depth for entry in record.entries}))
    name = f"replication_resnet{depths}_{date:%Y%m%d}"
    data, curves, page = (f"{name}.json", f"{name}_curves.csv", f"{name}.md")
    title = f"ResNet-{depths.replace('_', ', ')} on CIFAR, {date.isoformat()}"
    files: dict[Path, str | bytes] = {
        options.results / data: json.dumps(to_json(record, written=date.isoformat()), indent=1, allow_nan=False) + "\n",
        options.results / curves: to_csv(record),
        options.results / page: pages.record_page(record, title=title, images=options.images, files=(data, curves)),
    }
    if options.page is not None:
        before = options.page.read_text(encoding="utf-8")
        data_file = f"{options.results.name}/{data}"
        generated, figures = pages.readers_page(record, images=options.images, data_file=data_file, figures="images")
        files[options.page] = pages.insert(before, generated)
        files |= {options.page.parent / "images" / figure: content for figure, content in figures.items()}
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(files)


def _date(text: str | None) -> datetime.date:
    if text is None:
        return datetime.datetime.now(datetime.UTC).date()
    try:
        return datetime.datetime.strptime(text, "%Y%m%d").replace(tzinfo=datetime.UTC).date()
    except ValueError:
        raise ValueError(f"date must be YYYYMMDD, such as 20261125, got {text}") from None


if __name__ == "__main__":
    cli.run(main)
