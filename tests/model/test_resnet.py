"""Whole networks, forward and gradient.

Oracles: the paper's formulas spelled out in tests/oracle/resnet.py, and torchvision's ResNet-50.
"""

import itertools
from typing import Any, get_args

import pytest
import torch
import torchvision
from oracle.resnet import Network
from torch import Tensor, nn

from dist_resnet.model import build_model
from dist_resnet.recipe import Model, Placement, Shortcut

# Depth -> units in each stage, widths, bottleneck, ImageNet stem; independent of the package.
LAYOUTS: dict[int, tuple[tuple[int, ...], tuple[int, ...], bool, bool]] = {
    14: ((2, 2, 2), (16, 32, 64), False, False),
    11: ((1, 1, 1), (64, 128, 256), True, False),
    29: ((3, 3, 3), (64, 128, 256), True, False),
    50: ((3, 4, 6, 3), (256, 512, 1024, 2048), True, True),
}
PAIRS = list(itertools.product(get_args(Shortcut), get_args(Placement)))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network_of(**fields: Any) -> nn.Module:
    """A float64 network whose BN, gates and classifier are random too, so that no weight is a neutral element."""
    torch.manual_seed(0)
    network = build_model(Model(**fields)).double()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if tensor.dim() == 1:
            low = 0.5 if name.endswith(("weight", "running_var")) else -0.5
            tensor.uniform_(low, low + 1, generator=generator)
    return network


def check_against_formulas(size: int = 8, training: bool = True, **fields: Any) -> None:
    """Asserts that logits and all gradients equal the oracle's."""
    network = network_of(num_classes=5, **fields).train(training)
    num_units, widths, bottleneck, imagenet = LAYOUTS[fields["depth"]]
    images = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    learned = {name for name, _ in network.named_parameters()}
    state = {
        name: tensor.detach().clone().requires_grad_(name in learned) for name, tensor in network.state_dict().items()
    }
    formulas = Network(
        state, Model(num_classes=5, **fields), num_units, widths, bottleneck, imagenet=imagenet, training=training
    )
    actual = gradients(network, images, dict(network.named_parameters()))
    expected = gradients(formulas.logits, images, {name: state[name] for name in learned})
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-9, msg=lambda m, name=name: name + m)


def gradients(network: Any, images: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The logits, and the gradient of a sum over them by each weight and by the images."""
    images = images.clone().requires_grad_()
    torch.manual_seed(3)  # For dropout.
    logits = network(images)
    (logits.sin() * torch.arange(1, logits.shape[1] + 1)).sum().backward()
    found = {name: tensor.grad for name, tensor in weights.items()} | {"logits": logits.detach(), "images": images.grad}
    assert not any(tensor is None for tensor in found.values())
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("widening", ["projection", "zero_pad"])
@pytest.mark.parametrize(("shortcut", "placement"), PAIRS)
def test_every_pair_of_basic_units_follows_the_formulas(shortcut: Shortcut, placement: Placement, widening: Any):
    check_against_formulas(
        depth=14, shortcut=shortcut, placement=placement, widening=widening, gate_bias=-1.0, shortcut_scale=0.7
    )


@pytest.mark.parametrize("stride_on", ["conv1x1", "conv3x3"])
@pytest.mark.parametrize(("shortcut", "placement"), PAIRS)
def test_every_pair_of_bottleneck_units_follows_the_formulas(shortcut: Shortcut, placement: Placement, stride_on: Any):
    check_against_formulas(depth=11, shortcut=shortcut, placement=placement, stride_on=stride_on)


@pytest.mark.parametrize("placement", get_args(Placement))
def test_bottleneck_units_of_one_width_follow_the_formulas(placement: Placement):
    check_against_formulas(depth=29, placement=placement, widening="zero_pad")


@pytest.mark.parametrize("placement", ["original", "full_preactivation", "relu_only_preactivation"])
def test_the_imagenet_network_follows_the_formulas(placement: Placement):
    check_against_formulas(depth=50, placement=placement, size=64, training=placement != "full_preactivation")


def test_the_original_resnet_50_is_torchvisions_with_other_names():
    with torch.device("meta"):
        theirs = torchvision.models.resnet50(num_classes=10)
    theirs.to_empty(device="cpu").eval()
    names = {"conv1": "stem.conv", "bn1": "stem.norm", "fc": "head.classifier"}
    for stage, num_units in enumerate((3, 4, 6, 3)):
        for unit in range(num_units):
            old, new = f"layer{stage + 1}.{unit}", f"stages.{stage}.units.{unit}"
            names |= {f"{old}.conv{i}": f"{new}.branch.conv{i}" for i in (1, 2, 3)}
            names |= {f"{old}.bn{i}": f"{new}.branch.norm{i}" for i in (1, 2, 3)}
            names |= {f"{old}.downsample.{i}": f"{new}.shortcut.widening.{n}" for i, n in enumerate(("conv", "norm"))}
    ours = build_model(Model(depth=50, num_classes=10, placement="original")).eval()
    weights = ours.state_dict()
    keys = [key.rpartition(".") for key in theirs.state_dict()]
    theirs.load_state_dict({f"{old}.{part}": weights.pop(f"{names[old]}.{part}") for old, _, part in keys})
    assert not weights
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("widening", ["projection", "zero_pad"])
def test_odd_resolutions_follow_the_formulas(widening: Any):
    check_against_formulas(depth=14, size=9, widening=widening)


@pytest.mark.parametrize(("shortcut", "placement"), PAIRS)
def test_evaluation_follows_the_formulas_with_running_statistics(shortcut: Shortcut, placement: Placement):
    check_against_formulas(depth=14, shortcut=shortcut, placement=placement, training=False)


@pytest.mark.parametrize("num_classes", [2, 7, 1000])
def test_there_is_one_logit_per_class(num_classes: int):
    assert build_model(Model(depth=8, num_classes=num_classes))(torch.zeros(2, 3, 8, 8)).shape == (2, num_classes)


@pytest.mark.parametrize("depth", [20, 56, 110, 164, 1001, 50, 101, 152, 200])
def test_every_published_depth_has_as_many_weighted_layers_on_the_longest_path(depth: int):
    with torch.device("meta"):
        network = build_model(Model(depth=depth, num_classes=10, widening="zero_pad"))
    weighted = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(("shortcut", "placement"), PAIRS)
def test_every_pair_trains_under_bf16_autocast_and_channels_last(shortcut: Shortcut, placement: Placement):
    network = build_model(Model(depth=8, num_classes=3, shortcut=shortcut, placement=placement, widening="zero_pad"))
    network.to(memory_format=torch.channels_last)
    outputs = []
    for unit in network.units:
        unit.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(images)
    logits.float().sum().backward()
    assert all(output.dtype == torch.bfloat16 for output in outputs)
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in outputs)
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("shortcut", "placement"), PAIRS[::6] + PAIRS[29:])
def test_the_network_is_captured_as_one_graph(shortcut: Shortcut, placement: Placement):
    network = build_model(Model(depth=8, num_classes=3, shortcut=shortcut, placement=placement)).eval()
    images = torch.randn(2, 3, 8, 8)
    expected = network(images)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(network, (images,), dynamic_shapes={"images": {0: batch}})
    torch.testing.assert_close(exported.module()(images[:1]), expected[:1])
