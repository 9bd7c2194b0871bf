"""Weights from and to the names of other programs, for the network of a recipe."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from dist_resnet import recipe
from dist_resnet.model import build_model
from dist_resnet.model.depths import layout_of
from dist_resnet.model.shortcuts import widens_by_projection
from dist_resnet.weights.formats import CLASSIFIER, Format, Weights, recognize
from dist_resnet.wording import some

_CLASSIFIER_WEIGHT = f"{CLASSIFIER}weight"
_COUNTER = "num_batches_tracked"
# Fields of a model that decide what a network computes from its weights.
_FIELDS = ("depth", "placement", "shortcut", "stride_on", "widening")
_SCALES = ("shortcut_scale", "residual_scale")


def from_theirs(
    state: Mapping[str, torch.Tensor], source: Format, model: recipe.Model, known: Mapping[str, Any]
) -> Weights:
    """A state dict as this project's weights of `model`, with its own number of outputs; the classifier may be missing.

    `known` are fields of the model that the weights are of, as far as they are known. Counters of BN may be missing;
    they become zero. Raises ValueError, naming tensors and fields, if the weights are of another network or damaged.
    """
    fields = {**_depth_of(state), **source.model, **known}
    classifier = state.get(source.theirs(_CLASSIFIER_WEIGHT))
    outputs = max(2, len(classifier)) if classifier is not None and classifier.ndim else 2
    # The names are those of the network that the weights are of.
    own = dataclasses.replace(model, num_classes=outputs, **{key: fields[key] for key in _FIELDS if key in fields})
    ours = {source.theirs(name): name for name in _shapes(own)}
    weights = {ours.get(name, name): tensor for name, tensor in state.items()}
    if classifier is not None and classifier.ndim > 2 and classifier.shape[2:].numel() == 1:
        weights[_CLASSIFIER_WEIGHT] = classifier.flatten(1)
    wanted = _shapes(dataclasses.replace(model, num_classes=outputs))
    _check_same(weights, wanted, _other_fields(fields, model))
    return {
        name: _as_stored(name, weights, like) for name, like in wanted.items() if name in weights or _COUNTER in name
    }


def model_of(state: Mapping[str, torch.Tensor], like: recipe.Model, known: Mapping[str, Any]) -> recipe.Model:
    """The model that a state dict is of; what neither its names nor `known` tell is as in `like`.

    Raises ValueError if no network here has such tensors.
    """
    fields = {**_depth_of(state), **recognize(state).model, **known}
    return dataclasses.replace(like, **fields)


def to_theirs(weights: Weights, target: Format, model: recipe.Model) -> Weights:
    """This project's weights of `model` under the names of another program.

    Raises ValueError if the program has no such network, or one that computes other logits.
    """
    others = [f"{name} {mine} instead of {value}" for name, (mine, value) in _other_fields(target.model, model).items()]
    if target.depths is not None and model.depth not in target.depths:
        others.insert(0, f"depth {model.depth} instead of {' or '.join(map(str, target.depths))}")
    if others:
        raise ValueError(f"{target.title} has no such network: this one has {', '.join(others)}")
    target.check(weights)
    state = {target.theirs(name): tensor for name, tensor in weights.items()}
    if target.classifier_axes:
        name = target.theirs(_CLASSIFIER_WEIGHT)
        state[name] = state[name][(..., *(None,) * target.classifier_axes)].contiguous()
    return state


def describe_model(model: recipe.Model) -> dict[str, Any]:
    """The fields of a model that decide what a network computes from its weights."""
    fields = {name: getattr(model, name) for name in _FIELDS}
    fields["widening"] = "projection" if widens_by_projection(model) else "zero_pad"
    if model.shortcut == "constant_scaling":
        fields |= {name: getattr(model, name) for name in _SCALES}
    return fields


def _shapes(model: recipe.Model) -> Weights:
    with torch.device("meta"):
        return build_model(model).state_dict()


def _depth_of(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The depth by the number of units with two or three convolutions, if there is a network of that depth."""
    units = {layers: sum(name.endswith(f".conv{layers}.weight") for name in state) for layers in (2, 3)}
    depth = 3 * units[3] + 2 if units[3] else 2 * units[2] + 2
    try:
        layout_of(depth)
    except ValueError:
        return {}
    return {"depth": depth}


def _other_fields(fields: Mapping[str, Any], model: recipe.Model) -> dict[str, tuple[Any, Any]]:
    """The fields in which a model is not the one described: the model's value and the other."""
    mine = describe_model(model)
    return {name: (mine[name], value) for name, value in fields.items() if mine.get(name, value) != value}


def _check_same(weights: Mapping[str, torch.Tensor], wanted: Weights, others: dict[str, tuple[Any, Any]]) -> None:
    """Raises ValueError that names the tensors and the fields in which a network differs from the wanted one."""
    lacking = [n for n in wanted if n not in weights and _COUNTER not in n and not n.startswith(CLASSIFIER)]
    extra = sorted(weights.keys() - wanted.keys())
    shapes = [
        f"{name} {list(tensor.shape)} instead of {list(wanted[name].shape)}"
        for name, tensor in weights.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    kinds = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in weights.items()
        if name in wanted and tensor.is_floating_point() != wanted[name].is_floating_point()
    ]
    found = (("they lack", lacking), ("they also have", extra), ("shapes", shapes), ("types", kinds))
    differences = [f"{what} {some(names)}" for what, names in found if names]
    if not differences and not others:
        return
    advice = "weights of the same network"
    if others:
        fields = (f"{name} {theirs}, not {mine}" for name, (mine, theirs) in others.items())
        differences.insert(0, f"they have {' and '.join(fields)}")
        options = (f"--model.{name.replace('_', '-')} {theirs}" for name, (_, theirs) in others.items())
        advice = f"{' '.join(options)}, or other weights"
    raise ValueError(f"they are of another network than the recipe's: {'; '.join(differences)}; give {advice}")


def _as_stored(name: str, weights: Mapping[str, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """A tensor as a checkpoint stores it. Raises ValueError if a number in it is not finite."""
    tensor = weights.get(name)
    if tensor is None:
        return torch.zeros(like.shape, dtype=like.dtype)
    if not tensor.isfinite().all():
        raise ValueError(f"{name} has numbers that are not finite; give weights from before the training diverged")
    return tensor.detach().to("cpu", like.dtype).contiguous()
