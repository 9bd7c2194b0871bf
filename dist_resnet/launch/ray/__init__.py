"""Everything that uses Ray: clusters, Ray Train, Ray Tune, and the jobs of a cluster.

Sets the environment variables that Ray reads when it is imported, unless they are set.
"""

import os

for variable, value in {
    # Otherwise workers would each resolve the environment again under `uv run`.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Otherwise a thread that still calls Ray after `ray.shutdown` would start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # How often Ray Train's controller checks its workers.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Tune's CSV, JSON and TensorBoard files would repeat the journals, and its table ours; the driver handles Ctrl-C.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}.items():
    os.environ.setdefault(variable, value)
