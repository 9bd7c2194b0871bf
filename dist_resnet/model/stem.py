"""The layers before the first residual unit.

Both stems end in BN and ReLU in every placement. In 4(a) to 4(c) these belong to the stem's convolution. In 4(d) and
4(e) they are the first unit's activation, which Sec. 4.1 puts "right after conv1 and before splitting into two paths";
in 4(d) the BN is the one that follows every convolution. The first unit therefore has none, as in
facebook/fb.resnet.torch, whose ImageNet stem pools after them.
"""

from collections import OrderedDict

from torch import nn


def build_cifar_stem(width: int) -> nn.Sequential:
    """3x3 convolution, BN, ReLU: float [N, 3, H, W] -> [N, width, H, W]."""
    conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
    layers: dict[str, nn.Module] = {"conv": conv, "norm": nn.BatchNorm2d(width), "relu": nn.ReLU(inplace=True)}
    return nn.Sequential(OrderedDict(layers))


def build_imagenet_stem(width: int) -> nn.Sequential:
    """7x7 convolution with stride 2, BN, ReLU, 3x3 max-pooling with stride 2: [N, 3, H, W] -> [N, width, H/4, W/4]."""
    conv = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    layers: dict[str, nn.Module] = {"conv": conv, "norm": nn.BatchNorm2d(width), "relu": nn.ReLU(inplace=True)}
    return nn.Sequential(OrderedDict(layers, pool=nn.MaxPool2d(3, stride=2, padding=1)))
