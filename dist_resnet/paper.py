"""The published results of "Identity Mappings in Deep Residual Networks" (arXiv:1603.05027), keyed by cell.

The only copy in the package: reports, plots and tests read it. Errors are percentages, as printed; None means the
paper's "fail", an error above 20 %. Shortcuts and placements are named as in `recipe.Model`.
"""

from typing import Literal, NamedTuple

CIFAR_ITERATIONS = 64_000
"""Optimizer steps of the CIFAR experiments (appendix)."""
FAIL_ABOVE = 20.0
"""Error in percent above which Table 1 prints "fail"."""


class Table1(NamedTuple):
    """A row of Table 1: the shortcut of ResNet-110 on CIFAR-10, original placement, median of 5 runs."""

    shortcut: str
    shortcut_scale: float | None = None
    residual_scale: float | None = None
    gate_bias: float | None = None
    dropout_rate: float | None = None


TABLE_1: dict[Table1, float | None] = {
    Table1("identity"): 6.61,
    Table1("constant_scaling", shortcut_scale=0.0, residual_scale=1.0): None,
    Table1("constant_scaling", shortcut_scale=0.5, residual_scale=1.0): None,
    Table1("constant_scaling", shortcut_scale=0.5, residual_scale=0.5): 12.35,
    # One row in the paper, "0 to -5".
    **{Table1("exclusive_gating", gate_bias=float(bias)): None for bias in (0, -1, -2, -3, -4, -5)},
    Table1("exclusive_gating", gate_bias=-6.0): 8.70,
    Table1("exclusive_gating", gate_bias=-7.0): 9.81,
    Table1("shortcut_only_gating", gate_bias=0.0): 12.86,
    Table1("shortcut_only_gating", gate_bias=-6.0): 6.91,
    Table1("conv1x1"): 12.22,
    Table1("dropout", dropout_rate=0.5): None,
}


class Table2(NamedTuple):
    """A cell of Table 2: the placement of BN and ReLU on CIFAR-10, identity shortcut."""

    placement: str
    depth: int


TABLE_2: dict[Table2, float] = {
    Table2("original", 110): 6.61,
    Table2("original", 164): 5.93,
    Table2("bn_after_addition", 110): 8.17,
    Table2("bn_after_addition", 164): 6.50,
    Table2("relu_before_addition", 110): 7.84,
    Table2("relu_before_addition", 164): 6.14,
    Table2("relu_only_preactivation", 110): 6.71,
    Table2("relu_only_preactivation", 164): 5.91,
    Table2("full_preactivation", 110): 6.37,
    Table2("full_preactivation", 164): 5.46,
}


class Table3(NamedTuple):
    """A cell of Table 3: the original and the pre-activation unit on CIFAR."""

    dataset: Literal["cifar10", "cifar100"]
    depth: int
    placement: str
    layers_skipped: int | None = None
    """1 for the row "ResNet-110 (1-layer skip)", which this package does not build; otherwise None."""


TABLE_3: dict[Table3, float] = {
    Table3("cifar10", 110, "original", layers_skipped=1): 9.90,
    Table3("cifar10", 110, "full_preactivation", layers_skipped=1): 8.91,
    Table3("cifar10", 110, "original"): 6.61,
    Table3("cifar10", 110, "full_preactivation"): 6.37,
    Table3("cifar10", 164, "original"): 5.93,
    Table3("cifar10", 164, "full_preactivation"): 5.46,
    Table3("cifar10", 1001, "original"): 7.61,
    Table3("cifar10", 1001, "full_preactivation"): 4.92,
    Table3("cifar100", 164, "original"): 25.16,
    Table3("cifar100", 164, "full_preactivation"): 24.33,
    Table3("cifar100", 1001, "original"): 27.82,
    Table3("cifar100", 1001, "full_preactivation"): 22.71,
}


class Table4(NamedTuple):
    """A cell of Table 4 with pre-activation units: CIFAR results of several runs."""

    dataset: Literal["cifar10", "cifar100"]
    depth: int
    mini_batch: int = 128


class Runs(NamedTuple):
    """Several runs of one experiment."""

    median: float
    mean: float
    deviation: float


TABLE_4: dict[Table4, Runs] = {
    Table4("cifar10", 1001): Runs(4.92, 4.89, 0.14),
    Table4("cifar10", 1001, mini_batch=64): Runs(4.62, 4.69, 0.20),
    Table4("cifar100", 1001): Runs(22.71, 22.68, 0.22),
}


class Table5(NamedTuple):
    """A row of Table 5: ImageNet, trained at 224 pixels, one center crop."""

    depth: int
    placement: str
    augment: Literal["scale", "inception"]
    crop: int
    """Side of the validation crop in pixels."""


class Errors(NamedTuple):
    """Top-1 and top-5 errors."""

    top1: float
    top5: float


TABLE_5: dict[Table5, Errors] = {
    Table5(152, "original", "scale", 224): Errors(23.0, 6.7),
    Table5(152, "original", "scale", 320): Errors(21.3, 5.5),
    Table5(152, "full_preactivation", "scale", 320): Errors(21.1, 5.5),
    Table5(200, "original", "scale", 320): Errors(21.8, 6.0),
    Table5(200, "full_preactivation", "scale", 320): Errors(20.7, 5.3),
    Table5(200, "full_preactivation", "inception", 320): Errors(20.1, 4.8),
}


class Replication(NamedTuple):
    """A run of a public replication: ResNet-20 on CIFAR-10."""

    shortcut: str
    placement: str


REPLICATION_20: dict[Replication, float] = {
    Replication("identity", "original"): 8.56,
    Replication("constant_scaling", "original"): 8.50,
    Replication("conv1x1", "original"): 8.43,
    Replication("identity", "full_preactivation"): 8.08,
    Replication("conv1x1", "full_preactivation"): 8.16,
}

REPLICATION_20_SHORTCUTS: tuple[str, ...] = (
    "conv1x1",
    "constant_scaling",
    "identity",
    "shortcut_only_gating",
    "dropout",
    "exclusive_gating",
)
"""The replication's ranking of shortcuts under the original placement, lower error first."""

REPLICATION_20_PLACEMENTS: tuple[str, ...] = (
    "full_preactivation",
    "relu_only_preactivation",
    "original",
    "bn_after_addition",
    "relu_before_addition",
)
"""The replication's ranking of placements under the identity shortcut, lower error first."""

MILLION_PARAMETERS: dict[int, float] = {110: 1.7, 164: 1.7, 1001: 10.2, 152: 60.2, 200: 64.7}
"""Published number of parameters in millions, by depth. At 1001 it leaves out BN; with BN it is 10.3 million."""

BILLION_MULTIPLY_ADDS: dict[int, tuple[float, float]] = {200: (15.0, 15.1)}
"""Published range of the multiply-adds of one image of 224 x 224 pixels, by depth."""
