"""The layers after the last residual unit: its extra activation, average pooling and the linear classifier."""

from torch import Tensor, nn

from dist_resnet.model.placements import Placement, build_steps


class Head(nn.Module):
    """Float [N, width, H, W] -> logits [N, num_classes].

    With pre-activation, one extra activation follows the last unit (Sec. 4.1, Fig. 4(e)): BN and ReLU in 4(e), ReLU
    alone in 4(d), where each branch already ends in BN.
    """

    def __init__(self, width: int, num_classes: int, placement: Placement) -> None:
        super().__init__()
        self.activation = build_steps(placement.before, width, input_is_ours=False)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.activation(x).mean((2, 3)))
