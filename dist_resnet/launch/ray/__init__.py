"""The only door to Ray: clusters, Ray Train, Ray Tune, and the jobs of a cluster.

Whatever module of it comes first, this one sets what Ray reads when it is imported, and leaves alone what is set.
"""

import os

for variable, value in {
    # Otherwise workers would each resolve the environment again under `uv run`.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # What still runs in a thread while Ray is left would start another.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # How often Ray Train's controller looks whether its workers live.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Tune's CSV, JSON and TensorBoard files would repeat the journals, its table ours; Ctrl-C is the driver's affair.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}.items():
    os.environ.setdefault(variable, value)
