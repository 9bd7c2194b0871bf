"""Models as packages without pickle, published to MLflow's registry and pulled from it.

`pull` needs mlflow, torch, safetensors and pillow, and nothing else of what training needs.
"""

from dist_resnet.registry.pull import pull, read

__all__ = ["pull", "read"]
