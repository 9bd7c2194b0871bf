"""The whole network: stem, stages of residual units, head."""

from torch import Tensor, nn

from dist_resnet import recipe
from dist_resnet.model.depths import layout_of
from dist_resnet.model.head import Head
from dist_resnet.model.placements import PLACEMENTS
from dist_resnet.model.shortcuts import Passage
from dist_resnet.model.stem import build_cifar_stem, build_imagenet_stem
from dist_resnet.model.units import ResidualUnit


class Stage(nn.Module):
    """Residual units of one width and resolution; the first one changes both."""

    def __init__(self, units: list[ResidualUnit]) -> None:
        super().__init__()
        self.units = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        return self.units(x)


class ResNet(nn.Module):
    """A residual network: float images [N, 3, H, W] -> logits [N, num_classes].

    Has torch's default initial weights; `dist_resnet.model.build_model` builds one with the paper's.
    """

    def __init__(self, model: recipe.Model) -> None:
        super().__init__()
        layout = layout_of(model.depth)
        build_stem = build_imagenet_stem if layout.stem == "imagenet" else build_cifar_stem
        self.stem = build_stem(layout.stem_width)
        self.stages = nn.Sequential()
        in_width = layout.stem_width
        for stage, (num_units, width) in enumerate(zip(layout.num_units, layout.widths, strict=True)):
            units = []
            for unit in range(num_units):
                # The first stage keeps the stem's resolution; the first unit of each later stage halves it.
                passage = Passage(in_width=in_width, width=width, stride=2 if stage > 0 and unit == 0 else 1)
                is_first = stage == unit == 0
                units.append(ResidualUnit(passage, model, bottleneck=layout.bottleneck, is_first=is_first))
                in_width = width
            self.stages.append(Stage(units))
        self.head = Head(in_width, model.num_outputs, PLACEMENTS[model.placement])

    @property
    def units(self) -> list[ResidualUnit]:
        """The residual units from first to last, such as for a probe's hooks."""
        return [module for module in self.modules() if isinstance(module, ResidualUnit)]

    @property
    def layers(self) -> list[nn.Module]:
        """The network in order, the output of each the input of the next: stem, residual units, head."""
        return [self.stem, *self.units, self.head]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)))
