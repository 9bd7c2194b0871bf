"""Downloads a registered model, verifies every file against the registry's record, and prints how to use it.

    python jobs/pull_model.py --model models:/preact-resnet200@champion --target resnet200 --tracking-uri https://mlflow.example.org

If a file differs from the record, the package is refused and deleted.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from dist_resnet import cli, logs


@dataclass(frozen=True, kw_only=True)
class Options:
    model: str
    """models:/NAME/VERSION or models:/NAME@ALIAS."""
    target: Path
    """The folder to create."""
    tracking_uri: str | None = None
    """MLflow tracking server or store. Unset: MLFLOW_TRACKING_URI."""


def main() -> None:
    """Downloads and verifies the model and prints how to use it."""
    options = cli.parse_options(Options, doc=__doc__)
    logs.configure()
    # Imported late, so that --help does not wait for torch.
    from dist_resnet.registry.pull import download
    from dist_resnet.tracking import commands

    with cli.bad_input_exits():
        pulled = download(options.model, options.target.expanduser(), tracking_uri=options.tracking_uri)
    tags = pulled.version.tags
    print(f"{pulled.version.name} version {pulled.version.version} is in {pulled.folder}, every file verified.")
    print(f"top-1 error {tags.get('top1_error', 'unknown')} at {tags.get('evaluated_at', 'an unknown crop')}")
    print(f"weights sha256 {tags.get('weights_sha256')}")
    folder = str(pulled.folder)
    weights = shlex.quote(f"models:/{pulled.version.name}/{pulled.version.version}")
    print(USE.format(text=repr(folder), mlflow=commands.mlflow(), word=shlex.quote(folder), weights=weights))


USE = """
To classify images (needs mlflow, torch, safetensors, pillow):
    model = mlflow.pyfunc.load_model({text})
    model.predict({{"image": [open("image.jpg", "rb").read()]}}, params={{"top_k": 3}})
To serve it over HTTP, on this machine only:
    {mlflow} models serve --model-uri {word} --env-manager local --host 127.0.0.1 --port 5001
To train it further, a training job with
    --initial.weights {weights}
To use the network in Python:
    model = dist_resnet.registry.read({text})"""


if __name__ == "__main__":
    cli.run(main)
