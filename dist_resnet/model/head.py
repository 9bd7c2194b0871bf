"""The layers behind the last residual unit: its extra activation, average pooling and the linear classifier."""

from torch import Tensor, nn

from dist_resnet.model.placements import Placement, build_steps


class Head(nn.Module):
    """Float [N, width, H, W] -> logits [N, num_classes].

    Under pre-activation the last unit is followed by one extra activation (Sec. 4.1, Fig. 4(e)) of the placement's own
    kind: BN and ReLU under 4(e), and under 4(d) the ReLU alone, since each branch there already ends in BN.
    """

    def __init__(self, width: int, num_classes: int, placement: Placement) -> None:
        super().__init__()
        self.activation = build_steps(placement.before, width, input_is_ours=False)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.activation(x).mean((2, 3)))
