"""Writes CIFAR-10 or CIFAR-100, as published, as Parquet shards of lossless PNGs.

    python jobs/prepare_cifar.py --source ~/cifar --target ~/cifar10

The source is a folder of torchvision's `CIFAR10(root)` or an unpacked archive, in the python or the binary format.
The target is a local path, s3:// or gs:// URI and gets `train-00000-of-00001.parquet` and
`test-00000-of-00001.parquet`, for `--data.train` and `--data.validation`. Takes about half a minute.
"""

import argparse
from pathlib import Path

from dist_resnet import cli


def main(arguments: list[str] | None = None) -> None:
    """Converts; exits with code 2 and one line where the source or target cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--source", required=True, type=Path, help="folder of the published files")
    parser.add_argument("--target", required=True, help="local path, s3:// or gs:// URI of the folder to write")
    options = parser.parse_args(arguments)
    # Imported late, so that --help need not wait for Arrow.
    from dist_resnet.data.convert import convert_cifar

    with cli.bad_input_exits():
        counts = convert_cifar(options.source.expanduser(), options.target)
    for split, count in counts.items():
        print(f"{options.target}/{split}-00000-of-00001.parquet: {count} pictures")


if __name__ == "__main__":
    cli.run(main)
