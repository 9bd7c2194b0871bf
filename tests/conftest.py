"""Images, recipes and the one Ray cluster that tests share."""

import base64
import dataclasses
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from urllib.parse import urlencode

# Before Ray is imported anywhere: no `uv run` per worker, no token written to the home directory by tests.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ.pop("RAY_ADDRESS", None)
# As `launch.cluster` has it for a Ray of our own.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("RAY_preload_python_modules", "dist_resnet.launch.ray.preload")

# A shell has what it starts in the background ignore Ctrl-C, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pyarrow.fs as pafs
import pytest
import torch

from dist_resnet.data.prepare.demo import write_demo
from dist_resnet.recipe import Augment, Checkpoints, Data, Evaluation, Execution, Model, Recipe, Schedule


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives to one process the tests that share a Ray, started once, and those that take the whole machine. Skips those
    of GPUs where there is none."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()) or item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group("one at a time"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no NVIDIA GPU here"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """With -m gpu, skips files and folders that need Ray, MLflow or DALI where these are not installed, as on a GPU
    machine without a network."""
    report = yield
    missing = re.search(r"No module named '((ray|mlflow|nvidia)[.\w]*)'", str(report.longrepr))
    if report.failed and missing and collector.config.option.markexpr == "gpu":
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"needs {missing[1]}")
    return report


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _logs_reach_pytest() -> Iterator[None]:
    """Undoes what `logs.configure` set, so that caplog sees every test's log, and none of another's."""
    package = logging.getLogger("dist_resnet")
    # Threads that outlive their test go on asking for servers that are gone.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    yield
    package.handlers.clear()
    package.propagate = True


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Globs of 96 training and 40 validation images of 32 x 32 pixels in four classes."""
    folder = tmp_path_factory.mktemp("images")
    return write_demo(str(folder), size=32, num_classes=4, train_images=96, validation_images=40, seed=0)


@pytest.fixture
def recipe(images: tuple[str, str]) -> Recipe:
    """ResNet-8 on the images above: 2 epochs of 3 steps of 4 ghost batches of 8, images held on the device."""
    train, validation = images
    return Recipe(
        model=Model(depth=8, num_classes=4),
        data=Data(train=train, validation=validation, dataset="cifar10"),
        augment=Augment(kind="pad", size=32),
        schedule=Schedule(learning_rate=0.05, kind="cosine"),
        evaluation=Evaluation(crops=(32,), shorter_sides=(32,)),
        epochs=2,
        global_batch=32,
        ghost_batch=8,
    )


@pytest.fixture
def shard_recipe(recipe: Recipe) -> Recipe:
    """The same read from shards and decoded by DALI, with the scale augmentation."""
    return dataclasses.replace(
        recipe,
        augment=Augment(kind="scale", size=24, shorter_side=(26, 40)),
        evaluation=Evaluation(crops=(24, 32), shorter_sides=(28, 32)),
    )


@pytest.fixture
def execution(tmp_path: Path) -> Execution:
    """fp32 on one CPU worker, kept in the test's own folder, every step written down."""
    return Execution(
        device="cpu",
        cpus_per_worker=1,
        storage=str(tmp_path / "runs"),
        name="run",
        precision="fp32",
        log_every=1,
        checkpoints=Checkpoints(every=2),
    )


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One Ray of 4 cores for the whole session: starting one takes half a minute. Its job server's address."""
    import ray

    from dist_resnet.launch.ray.internals import free_ports

    # Beside whatever else runs on this machine: `ray start` wants 8265 and the others for itself.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with free_ports():
        context = ray.init(address="local", num_cpus=4, logging_level="WARNING", dashboard_port=port)
    yield f"http://{context.dashboard_url}"
    ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URI of a bucket on a real S3 server on loopback; the environment points Arrow at it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="session")
def gs() -> Iterator[str]:
    """The URI of a bucket on a real server of Google's storage API on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A process of its own: Arrow's client holds Python's lock while it waits for an answer.
    program = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", "--default-bucket=bucket"]
    server = subprocess.Popen([*program, "--host=127.0.0.1", f"--port={port}", "--quiet"])
    _wait_for(port, server)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{port}")
        yield "gs://anonymous@bucket"
    server.kill()
    server.wait()


@pytest.fixture(scope="session")
def az(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a container on Azurite, Microsoft's own server of Azure's storage API for tests, on loopback."""
    program = os.environ.get("AZURITE") or shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azurite is not installed: npm install azurite, and AZURITE=node_modules/.bin/azurite-blob")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = base64.b64encode(b"nobody's key, for tests").decode()
    options = ["--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    server = subprocess.Popen(
        [os.path.abspath(program), *options, "--blobHost=127.0.0.1", f"--blobPort={port}"],
        cwd=tmp_path_factory.mktemp("azurite"),
        env={**os.environ, "AZURITE_ACCOUNTS": f"tests:{key}"},
        stdout=subprocess.DEVNULL,
    )
    _wait_for(port, server)
    authority = {"blob_storage_authority": f"127.0.0.1:{port}", "blob_storage_scheme": "http"}
    others = {name.replace("blob", "dfs"): value for name, value in authority.items()}
    pafs.AzureFileSystem("tests", account_key=key, **authority, **others).create_dir("bucket")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_STORAGE_ACCOUNT", "tests")
        patch.setenv("AZURE_STORAGE_KEY", key)
        yield f"az://bucket?{urlencode(authority)}"
    server.kill()
    server.wait()


def _wait_for(port: int, server: subprocess.Popen) -> None:
    while server.poll() is None:
        with socket.socket() as knocking:
            if knocking.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"{server.args} ended with {server.returncode}")
