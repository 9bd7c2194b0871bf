"""Weights under other programs' names. Oracle: torchvision's and timm's own networks, logits and gradients."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from weights.published import timm_network, torchvision_network

from dist_resnet.model import build_model
from dist_resnet.recipe import Model
from dist_resnet.weights.convert import from_theirs, to_theirs
from dist_resnet.weights.formats import FORMATS, OURS, TIMM, TORCHVISION, Weights, recognize

MODEL = Model(depth=50, num_classes=7, placement="original")
PREACTIVATION = Model(depth=50, num_classes=7)


def _ours(model: Model, theirs: torch.nn.Module) -> torch.nn.Module:
    """Our network with another program's weights."""
    state = theirs.state_dict()
    network = build_model(model).eval()
    network.load_state_dict(from_theirs(state, recognize(state), model, {}))
    return network


def _images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _pass(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits = network(images)
    F.cross_entropy(logits, torch.tensor([1, 4])).backward()
    return logits.detach()


@pytest.mark.parametrize(("depth", "training"), [(50, False), (50, True), (101, True), (152, False)])
def test_torchvisions_logits_gradients_and_statistics_are_ours_bit_for_bit(depth: int, training: bool):
    theirs = torchvision_network(depth)
    ours = _ours(replace(MODEL, depth=depth), theirs)
    for network in (theirs, ours):
        network.train(training)
    assert torch.equal(_pass(theirs, _images()), _pass(ours, _images()))
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, gradients[TORCHVISION.theirs(name)]), name
    after = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, after[TORCHVISION.theirs(name)]), name


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_timms_features_in_evaluation_are_ours_bit_for_bit_and_its_logits_to_rounding(depth: int):
    theirs = timm_network(depth)
    ours = _ours(replace(PREACTIVATION, depth=depth), theirs).double()
    theirs, images = theirs.double(), _images().double()
    with torch.no_grad():
        features = theirs.forward_features(images)
        assert torch.equal(ours.head.activation(ours.stages(ours.stem(images))), features)
        # timm's classifier is a convolution. The rounding of a sum is measured by that of its terms without signs.
        weight, bias = ours.head.classifier.weight.abs(), ours.head.classifier.bias.abs()
        terms = features.mean((2, 3)) @ weight.T + bias
        assert ((ours(images) - theirs(images)).abs() / terms).max() <= 6e-16


@pytest.mark.parametrize(
    ("make", "model", "name"),
    [(torchvision_network, MODEL, "torchvision"), (timm_network, PREACTIVATION, "timm")],
)
def test_the_way_back_gives_their_state_dict_which_their_network_loads(
    make: Callable[[], torch.nn.Module], model: Model, name: str
):
    theirs = make()
    state = theirs.state_dict()
    back = to_theirs(from_theirs(state, FORMATS[name], model, {}), FORMATS[name], model)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) and back[key].dtype == tensor.dtype for key, tensor in state.items())
    theirs.load_state_dict(back, strict=True)


def test_counters_of_bn_may_be_missing_as_in_torchvisions_first_files_and_a_head_too():
    state = {
        name: tensor
        for name, tensor in torchvision_network().state_dict().items()
        if "num_batches" not in name and not name.startswith("fc.")
    }
    found = from_theirs(state, TORCHVISION, MODEL, {})
    assert found["stem.norm.num_batches_tracked"] == 0
    assert found["stem.norm.num_batches_tracked"].dtype == torch.int64
    assert not [name for name in found if "classifier" in name]


def test_half_precision_becomes_single():
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in _state().items()}
    assert {tensor.dtype for tensor in from_theirs(state, TORCHVISION, MODEL, {}).values()} == {
        torch.float32,
        torch.int64,
    }


def _state() -> Weights:
    return dict(torchvision_network().state_dict())


def _with(**tensors: torch.Tensor) -> Weights:
    """torchvision's weights with other tensors; in names, __ is a dot."""
    return _state() | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (PREACTIVATION, r"placement original, not full_preactivation; they lack .*preactivation.* and \d+ more;"),
        (PREACTIVATION, r"; give --model.placement original, or other weights$"),
        (
            replace(MODEL, depth=101),
            r"depth 50, not 101; they lack stages.2.units.6.branch.conv1.weight, .* and \d+ mo",
        ),
        (
            replace(MODEL, stride_on="conv1x1"),
            "they have stride_on conv3x3, not conv1x1; give --model.stride-on conv3x3",
        ),
        (replace(MODEL, shortcut="dropout"), "they have shortcut identity, not dropout"),
    ],
)
def test_weights_of_a_network_with_other_fields_are_refused_with_what_differs(model: Model, complaint: str):
    with pytest.raises(ValueError, match=complaint) as caught:
        from_theirs(_state(), TORCHVISION, model, {})
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda: {k: v for k, v in _state().items() if k != "bn1.weight"},
            "they lack stem.norm.weight; give weights of",
        ),
        (lambda: _with(layer1__0__se__weight=torch.zeros(2)), "they also have layer1.0.se.weight"),
        (
            lambda: _with(conv1__weight=torch.zeros(64, 1, 7, 7)),
            r"stem.conv.weight \[64, 1, 7, 7\] instead of \[64, 3,",
        ),
        (lambda: _with(fc__weight=torch.zeros(7, 5)), r"head.classifier.weight \[7, 5\] instead of \[7, 2048\]"),
        (lambda: _with(bn1__bias=torch.zeros(64, dtype=torch.int8)), "types stem.norm.bias int8"),
        (lambda: _with(bn1__bias=torch.full((64,), torch.nan)), "stem.norm.bias has numbers that are not finite"),
    ],
)
def test_other_tensors_are_refused_by_name(change: Callable[[], Weights], complaint: str):
    with pytest.raises(ValueError, match=complaint) as caught:
        from_theirs(change(), TORCHVISION, MODEL, {})
    assert len(str(caught.value)) < 900


def test_a_network_of_a_run_is_compared_by_its_recipe_too():
    weights = build_model(Model(depth=8, num_classes=4)).state_dict()
    with pytest.raises(ValueError, match="they have shortcut constant_scaling, not identity"):
        from_theirs(weights, OURS, Model(depth=8, num_classes=4), {"shortcut": "constant_scaling"})
    found = from_theirs(weights, OURS, Model(depth=8, num_classes=10), {"shortcut": "identity"})
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_other_state_dicts_are_not_recognized():
    with pytest.raises(ValueError, match=r"its 3 tensors \(a, b, c\) are not named as in .*torchvision.*timm"):
        recognize(dict.fromkeys("abc", torch.zeros(1)))
    with pytest.raises(ValueError, match="its 0 tensors"):
        recognize({})


@pytest.mark.parametrize("scale", [0.0, -0.1])
def test_timms_first_norm_must_have_positive_scales_both_ways(scale: float):
    theirs = timm_network()
    weights = from_theirs(theirs.state_dict(), TIMM, PREACTIVATION, {})
    weights["stem.norm.weight"][5] = scale
    for act in (TIMM.check, lambda weights: to_theirs(weights, TIMM, PREACTIVATION)):
        with pytest.raises(ValueError, match=r"1 of 64 scales of the first norm are not positive \(channel 5: "):
            act(weights)


@pytest.mark.parametrize(
    ("name", "model", "complaint"),
    [
        (
            "torchvision",
            PREACTIVATION,
            "torchvision has no such network: this one has placement full_preactivation ins",
        ),
        ("timm", MODEL, "timm has no such network: this one has placement original instead of full_preactivation"),
        ("torchvision", Model(depth=8, num_classes=4, placement="original"), "depth 8 instead of 50 or 101 or 152"),
    ],
)
def test_a_network_that_a_program_lacks_is_not_named_as_its_own(name: str, model: Model, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        to_theirs(build_model(model).state_dict(), FORMATS[name], model)
