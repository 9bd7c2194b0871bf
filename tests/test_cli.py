"""The command line. Oracle: the recipe's own defaults, and the exit codes and lines that the design promises."""

import re

import pytest

from dist_resnet import cli
from dist_resnet.recipe import Augment, Data, Execution, Model, Recipe

JOB = Recipe(model=Model(depth=200, num_classes=1000), data=Data(train="a", validation="b"), augment=Augment())


def _parse(*arguments: str) -> tuple[Recipe, Execution, bool]:
    return cli.parse(JOB, Execution(), doc="A job.", arguments=arguments)


def test_nothing_given_is_the_jobs_own_recipe():
    assert _parse() == (JOB, Execution(), False)


def test_options_are_the_fields_own_names():
    recipe, execution, _ = _parse(
        *("--model.depth", "20", "--epochs", "5", "--global-batch", "128", "--ghost-batch", "64", "--seed", "3"),
        *("--data.train", "s3://bucket/train", "--schedule.drops", "0.5", "0.75", "--optimizer.nesterov"),
        *("--execution.workers", "2", "--execution.storage", "gs://bucket/runs", "--execution.name", "mine"),
        *("--execution.tracking.uri", "http://127.0.0.1:5000"),
    )
    assert (recipe.model.depth, recipe.epochs, recipe.global_batch, recipe.ghost_batch, recipe.seed) == (
        20,
        5,
        128,
        64,
        3,
    )
    assert recipe.data.train == "s3://bucket/train"
    assert recipe.schedule.drops == (0.5, 0.75)
    assert recipe.optimizer.nesterov
    assert execution.workers == 2
    assert execution.storage == "gs://bucket/runs"
    assert execution.name == "mine"
    assert execution.tracking.uri == "http://127.0.0.1:5000"


def test_the_demo_is_a_default_that_options_change():
    recipe, execution, demo = _parse("--demo", "--epochs", "1")
    assert demo
    assert recipe.epochs == 1
    assert recipe.model.num_classes == 10
    assert execution.workers == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--epoch", "5"], "Unrecognized options: --epoch, 5; perhaps you meant --epochs"),
        (["--execution.worker", "2"], "perhaps you meant --execution.workers or --execution."),
        (["--model.depth", "deep"], "--model.depth: invalid literal for int() with base 10: 'deep'"),
        (["--model.shortcut", "highway"], "invalid choice 'highway' for argument '--model.shortcut'"),
        (["--global-batch", "100"], ": global_batch 100 is not a multiple of ghost_batch 32; change --global-batch or"),
        (["--schedule.drops", "0.9", "0.1"], ": schedule.drops must rise within (0, 1)"),
        (["--seed"], "Missing value for argument '--seed'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as caught:
        _parse(*arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_help_teaches_every_field(capsys):
    with pytest.raises(SystemExit) as caught:
        _parse("--help")
    assert caught.value.code == 0
    told = capsys.readouterr().out
    for text in ("A job.", "--demo", "--model.shortcut", "--execution.storage", "Images per set of BN statistics"):
        assert text in told


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device", "/runs/a"), RuntimeError("rank 0:\nit")])
def test_a_run_that_fails_ends_in_a_line_that_says_how_to_continue(failure: Exception):
    with pytest.raises(SystemExit) as ended, cli.failures_exit():
        raise failure
    line = str(ended.value.code)
    assert " ".join(str(failure).split()) in line
    assert line.endswith("; once that is fixed, the same command resumes")
    assert "\n" not in line


@pytest.mark.parametrize("spelled", ["--execution.checkpoint-every=7", "--execution.checkpoint_every=7"])
def test_an_option_of_the_version_before_is_taken_with_a_line_that_names_todays(spelled: str, capsys):
    _, execution, _ = _parse(spelled, "--execution.no-register", "--execution.hang-minutes", "2")
    assert (execution.checkpoints.every, execution.tracking.register) == (7, False)
    assert execution.recovery.hang_timeout_minutes == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert "is now called --execution.checkpoints.every; the next version drops the old name" in said[0]


def test_every_old_name_stands_for_an_option_of_today(capsys):
    with pytest.raises(SystemExit):
        _parse("--help")
    told = capsys.readouterr().out
    names = set(cli._RENAMED.values()) - {"--trials-per-gpu"}  # of sweeps alone
    assert len(names) == 30
    assert {name for name in names if not re.search(rf"{name}[ ,]", told)} == set()
