"""Models as pickle-free packages, published to MLflow's registry and pulled from it.

`pull` needs only mlflow, torch, safetensors and pillow.
"""

from dist_resnet.registry.pull import pull, read

__all__ = ["pull", "read"]
