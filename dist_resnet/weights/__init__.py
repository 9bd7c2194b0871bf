"""Weights of other programs: files and the names that torchvision and timm give to the same networks."""
