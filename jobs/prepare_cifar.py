"""Converts CIFAR-10 or CIFAR-100, as published, to Parquet shards of lossless PNGs.

    python jobs/prepare_cifar.py --source ~/cifar --target ~/cifar10

The source is the root folder of torchvision's `CIFAR10` or an unpacked archive, in the python or the binary format.
The target is a local path or URI of an object store. The job writes `train-00000-of-00001.parquet` for `--data.train`
and `test-00000-of-00001.parquet` for `--data.validation`, in about half a minute.
"""

from dataclasses import dataclass
from pathlib import Path

from dist_resnet import cli


@dataclass(frozen=True, kw_only=True)
class Options:
    source: Path
    """Folder of the published files."""
    target: str
    """Local path or URI of the folder to write."""


def main() -> None:
    """Converts; exits with code 2 and one line if the source or target cannot be used."""
    options = cli.parse_options(Options, doc=__doc__)
    # Imported late, so that --help does not wait for Arrow.
    from dist_resnet.data.shards.write import convert_cifar
    from dist_resnet.storage.uri import child_uri

    with cli.bad_input_exits():
        counts = convert_cifar(options.source.expanduser(), options.target)
    for split, count in counts.items():
        print(f"{child_uri(options.target, f'{split}-00000-of-00001.parquet')}: {count} images")


if __name__ == "__main__":
    cli.run(main)
