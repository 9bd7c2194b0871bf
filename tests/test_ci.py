"""What `.ci/run` sets up before it runs anything. Oracle: bash's own environment."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"


def test_nothing_is_set_that_changes_how_python_ray_mlflow_or_torch_behave() -> None:
    beginning, _, _ = SCRIPT.read_text().partition("python -m pip")
    left = {
        "SSL_CERT_FILE": "a",
        "https_proxy": "b",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MY_RAY_X": "c",
    }
    gone = (
        "PYTHONDONTWRITEBYTECODE PYTHONUNBUFFERED PYTHONPATH RAY_ADDRESS RAY_ENABLE_UV_RUN_RUNTIME_ENV TUNE_RESULT_DIR "
        "MLFLOW_TRACKING_URI TORCH_HOME TORCHINDUCTOR_CACHE_DIR OMP_NUM_THREADS"
    )
    environment = {"PATH": os.environ["PATH"], **left, **dict.fromkeys(gone.split(), "1")}
    done = subprocess.run(
        ["bash", "-c", f"{beginning}\nenv", str(SCRIPT)], env=environment, capture_output=True, text=True, check=True
    )
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found.keys() & set(gone.split()) == set()
    assert left.items() <= found.items()
