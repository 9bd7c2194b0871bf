"""What holds in our runs. Oracle: differences of medians by hand, and the rule of 0.3 points."""

import math
from pathlib import Path

import pytest
from ablation.sweeps import MODEL, cell, write_sweep

from dist_resnet.ablation.claims import CLAIMS, Finding, error_noise, findings
from dist_resnet.ablation.results import Cell, read_sweep
from dist_resnet.tracking.journal import Journal
from dist_resnet.tracking.records import Diverged, Finished, Metrics, Session
from dist_resnet.tracking.run_directory import RunDirectory

ORIGINAL, PREACTIVATION = ("identity", "original"), ("identity", "full_preactivation")
Results = dict[tuple[str, str], list[tuple[float, float] | None]]


def _cells(tmp_path: Path, results: Results) -> list[Cell]:
    """Networks with (error in percent, training loss) of each seed, None where the seed is half-way."""
    sweep = RunDirectory(str(tmp_path))
    entries = []
    for (shortcut, placement), seeds in results.items():
        model = MODEL | {"shortcut": shortcut, "placement": placement}
        for seed, result in enumerate(seeds):
            name = f"{shortcut}-{placement}-{seed}"
            entries.append(cell(f"{shortcut}-{placement}", name, seed=seed, depth=20, model=model))
            _write(RunDirectory(sweep.child(name)), result)
    write_sweep(sweep, entries)
    return read_sweep(sweep).cells


def _write(trial: RunDirectory, result: tuple[float, float] | None) -> None:
    trial.write_json("recipe.json", {"fingerprint": "9" * 64, "recipe": {}})
    error, loss = result or (5.0, 0.001)
    journal = Journal(trial)
    journal.append(Session(start_step=0, total_steps=64_000, device="CPU"))
    journal.append(Metrics(step=64_000, values={"train/loss": loss, "time/step_seconds": 1.0}))
    if math.isinf(error):
        journal.append(Diverged(step=64_000))
    else:
        journal.append(Metrics(step=64_000, values={"val/top1_error": error / 100}))
        if result:
            journal.append(Finished(steps=64_000, top1_error=error / 100))
    journal.commit()


def _found(cells: list[Cell], beginning: str) -> Finding:
    (found,) = [each for each in findings(cells) if each.claim.text.startswith(beginning)]
    return found


LOWER = "Full pre-activation has a lower test error than the original unit"


@pytest.mark.parametrize(
    ("original", "preactivation", "verdict"),
    [
        (8.56, 8.08, "holds"),
        (8.40, 8.15, "within the seed noise"),
        (8.15, 8.40, "within the seed noise"),
        (8.08, 8.56, "does not hold"),
        (math.inf, 8.08, "holds"),
        (8.08, math.inf, "does not hold"),
        (math.inf, math.inf, "within the seed noise"),
    ],
)
def test_a_difference_of_more_than_the_noise_decides(tmp_path: Path, original, preactivation, verdict):
    cells = _cells(tmp_path, {ORIGINAL: [(original, 0.01)], PREACTIVATION: [(preactivation, 0.02)]})
    assert _found(cells, LOWER).verdict == verdict


def test_seeds_that_differ_by_more_make_more_noise(tmp_path: Path):
    results: Results = {ORIGINAL: [(8.9, 0.01), (8.4, 0.01)], PREACTIVATION: [(8.2, 0.02), (8.1, 0.02)]}
    cells = _cells(tmp_path, results)
    # 8.65 against 8.15, and the seeds of one are 0.5 apart.
    assert error_noise(cells) == pytest.approx(0.5)
    results[ORIGINAL] = [(9.0, 0.01), (8.6, 0.01)]
    assert _found(_cells(tmp_path / "less", results), LOWER).verdict == "holds"
    results[ORIGINAL] = [(9.1, 0.01), (8.0, 0.01)]
    assert _found(_cells(tmp_path / "more", results), LOWER).verdict == "within the seed noise"


def test_seeds_that_happen_to_agree_make_no_less_than_0_3_points(tmp_path: Path):
    assert error_noise(_cells(tmp_path, {ORIGINAL: [(8.40, 0.01), (8.41, 0.01)]})) == 0.3


def test_the_numbers_that_were_compared_are_told(tmp_path: Path):
    cells = _cells(tmp_path, {ORIGINAL: [(8.56, 0.0119)], PREACTIVATION: [(8.08, 0.0204)]})
    assert _found(cells, LOWER).numbers == "identity-full_preactivation: 8.08 %; identity-original: 8.56 %"


@pytest.mark.parametrize(
    ("original", "preactivation", "verdict"),
    [(0.012, 0.020, "holds"), (0.020, 0.012, "does not hold")],
)
def test_losses_of_one_seed_each_are_compared_and_said_to_be_of_one_seed(
    tmp_path: Path, original, preactivation, verdict
):
    cells = _cells(tmp_path, {ORIGINAL: [(8.5, original)], PREACTIVATION: [(8.5, preactivation)]})
    found = _found(cells, "Full pre-activation ends with a higher training loss")
    assert found.verdict == verdict
    assert found.numbers.endswith("; one seed each, so the noise is unknown")
    assert f"identity-original: {original:.4f}" in found.numbers


def test_losses_are_compared_beside_the_spread_of_seeds(tmp_path: Path):
    results: Results = {ORIGINAL: [(8.5, 0.010), (8.5, 0.014)], PREACTIVATION: [(8.5, 0.015)]}
    found = _found(_cells(tmp_path, results), "Full pre-activation ends with a higher training loss")
    # 0.012 against 0.015, and seeds are 0.004 apart.
    assert (found.verdict, "one seed" in found.numbers) == ("within the seed noise", False)


FIVE: Results = {
    ORIGINAL: [(8.9, 0.01)],
    ("constant_scaling", "original"): [(8.8, 0.01)],
    ("conv1x1", "original"): [(8.7, 0.01)],
    ("conv1x1", "full_preactivation"): [(8.6, 0.01)],
}
LOWEST = "Full pre-activation has the lowest"


@pytest.mark.parametrize(("error", "verdict"), [(8.2, "holds"), (8.4, "within the seed noise"), (9.0, "does not hold")])
def test_the_lowest_is_compared_with_the_next(tmp_path: Path, error, verdict):
    found = _found(_cells(tmp_path, FIVE | {PREACTIVATION: [(error, 0.01)]}), LOWEST)
    assert found.verdict == verdict
    assert found.numbers.endswith("conv1x1-full_preactivation: 8.60 %")


def test_a_statement_is_open_until_all_of_its_networks_are_finished(tmp_path: Path):
    cells = _cells(tmp_path, FIVE | {PREACTIVATION: [None]})
    assert _found(cells, LOWEST) == Finding(claim=CLAIMS[0], verdict="open")
    assert _found(cells, "With the original unit, 1x1 convolution").verdict == "within the seed noise"
    assert {each.verdict for each in findings([])} == {"open"}


def test_only_the_usual_settings_stand_for_a_shortcut(tmp_path: Path):
    sweep = RunDirectory(str(tmp_path))
    for name, error in (("usual", 9.5), ("other", 30.0), ("identity", 8.5)):
        _write(RunDirectory(sweep.child(name)), (error, 0.01))
    models = {"usual": {"shortcut": "exclusive_gating"}, "identity": {}}
    models["other"] = {"shortcut": "exclusive_gating", "gate_bias": 0.0}
    write_sweep(sweep, [cell(name, name, model=MODEL | changes) for name, changes in models.items()])
    found = _found(read_sweep(sweep).cells, "Exclusive gating (bias -6) has a higher test error")
    assert (found.verdict, found.numbers) == ("holds", "identity: 8.50 %; usual: 9.50 %")
