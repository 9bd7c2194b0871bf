"""The network, crops and normalization of the weights that fine-tuning starts from, which are its defaults."""

import dataclasses
import itertools
from collections.abc import Sequence

from dist_resnet.launch.initial import is_registered
from dist_resnet.launch.trained import open_trained
from dist_resnet.recipe import Model, Recipe
from dist_resnet.storage.uri import absolute_uri, without_credentials
from dist_resnet.tracking.mlflow import address
from dist_resnet.tracking.run_directory import RECIPE_FILE, RunDirectory
from dist_resnet.weights import files
from dist_resnet.weights.convert import model_of


def follow_weights(recipe: Recipe, weights: str, *, storage: str, name: str | None, tracking_uri: str | None) -> Recipe:
    """The recipe with the network, the crops and the normalization that these weights were trained with.

    Published files tell their network alone: the recipe keeps its crops and normalization. The head has as many outputs
    as the new images have classes. A run of this `name` in this `storage` is followed itself, as its weights may be
    gone. Raises ValueError or OSError, in one line, if the weights cannot be read.
    """
    place = RunDirectory(storage)
    if name is not None and (known := RunDirectory(place.child(name)).read_json(RECIPE_FILE)) is not None:
        return _like(recipe, Recipe.from_dict(known["recipe"]))
    if not is_registered(weights) and files.is_file(weights):
        return dataclasses.replace(recipe, model=_model_in(weights, recipe))
    if is_registered(weights):
        tracking_uri = address.store_beside(RunDirectory(absolute_uri(storage)), tracking_uri)
    with open_trained(weights, tracking_uri=tracking_uri) as trained:
        return _like(recipe, trained.recipe)


def value_of(arguments: Sequence[str], option: str) -> str | None:
    """The last value of an option on a command line that is not read yet; None if it is not given.

    >>> value_of(["--initial.weights", "a", "--initial.weights=b"], "--initial.weights"), value_of(["--demo"], "--x")
    ('b', None)
    """
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith(f"{option}=") else [word])]
    given = [after for word, after in itertools.pairwise(words) if word == option]
    return given[-1] if given else None


def _like(recipe: Recipe, trained: Recipe) -> Recipe:
    data = dataclasses.replace(recipe.data, dataset=trained.data.dataset, mean=trained.data.mean, std=trained.data.std)
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(trained.model, num_classes=None),
        data=data,
        augment=trained.augment,
        evaluation=dataclasses.replace(trained.evaluation, every_epochs=recipe.evaluation.every_epochs),
    )


def _model_in(weights: str, recipe: Recipe) -> Model:
    found = files.read(absolute_uri(weights))
    try:
        return dataclasses.replace(model_of(found.tensors, recipe.model, found.model), num_classes=None)
    except ValueError as error:
        raise ValueError(f"the initial weights at {without_credentials(weights)} cannot be used: {error}") from error
