"""Advice from made-up Datasets, in which every sentence can turn out otherwise, and from a real run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.measuring.advising.bounded import Bounded
from tests.refusals import refusal
from theory.progress import of_averaged

NAN, INF = float("nan"), float("inf")
Numbers = tuple[float, float, float]

# ‖g‖² = 4, gᵀHg = 2, and an unbiased guess with c = 1/10: C = 20 at one guess, and η* = 4/20.
PROGRESS: dict[str, Numbers] = {
    "slope_along": (4, 3.8, 4.2),
    "mean_curvature": (2, 1.8, 2.2),
    "curvature_along": (20, 18, 22),
    "best_step": (0.2, 0.18, 0.22),
    "expected_decrease": (0.4, 0.35, 0.45),
    "curved_efficiency": (0.1, 0.09, 0.11),
    "unseen_curvature": (0.01, -0.05, 0.07),
}
AVERAGED = ("curvature_along", "best_step", "expected_decrease", "curved_efficiency")
DIAGNOSIS: dict[str, Numbers] = {
    "efficiency": (0.01, 0.009, 0.011),
    "directional_bias": (0.001, 0, 0.01),
    "variance": (1, 0.9, 1.1),
}
DIFFERENCES: dict[str, Numbers] = {
    "best_epsilon": (1e-3, 9e-4, 1.1e-3),
    "least_slope_error": (0.1, 0.09, 0.11),
}
ENDS = ("", "_low", "_high")


def progress(predicted: bool = True, attrs: dict[str, str] | None = None, **changed: Any) -> xr.Dataset:
    """A made-up Dataset of `fga.progress`: numbers and bounds, and other variables as they are given."""
    arrays: dict[str, Any] = {}
    for name, default in PROGRESS.items():
        for end, value in zip(ENDS, changed.pop(name, default), strict=True):
            dims = ("step", "estimator", "averaged") if name in AVERAGED else ("step", "estimator")
            arrays[name + end] = (dims, np.full((1, 1, 2)[: len(dims)], value))
    known = {"slope_along": 4.0, "mean_curvature": 2.0, "best_step": 0.2}
    arrays |= {f"{name}_predicted": (("step", "estimator"), [[v if predicted else NAN]]) for name, v in known.items()}
    network = {"squared_gradient": 4.0, "gradient_curvature": 2.0, "gradient_step": 2.0} | changed
    arrays |= {name: (("step", "layer"), [[value]]) for name, value in network.items()}
    coordinates = {"step": [0], "estimator": ["weight"], "averaged": [1, 4], "layer": ["all"]}
    return xr.Dataset(arrays, coords=coordinates, attrs=attrs or {})


def diagnosis(bias: float = 0.0, angle: float = 0.0, layers: Any = None, **changed: Numbers) -> xr.DataTree:
    """A made-up tree of `fga.diagnose` with the layers a and b. layers: variances of both, with their bounds."""
    dims, names = ("step", "estimator", "space", "layer"), ["a", "b", "all"]
    coordinates = {"step": [0], "estimator": ["weight"], "space": ["weight"], "layer": names}
    numbers = {name: np.array([[changed.get(name, default)] * 3]) for name, default in DIAGNOSIS.items()}
    if layers is not None:
        numbers["variance"][0, :2] = layers
    measured = {
        name + end: (dims, values[..., number][None, None])
        for name, values in numbers.items()
        for number, end in enumerate(ENDS)
    }
    measured["gradient_norm"] = (dims, np.array([[[[0.6, 0.8, 1.0]]]]))
    predicted = {"relative_bias": bias, "directional_bias": angle}
    nodes = {
        "measured": xr.Dataset(measured, coords=coordinates),
        "predicted": xr.Dataset(
            {n: (dims, np.full((1, 1, 1, 3), v)) for n, v in predicted.items()}, coords=coordinates
        ),
    }
    return xr.DataTree.from_dict(nodes)


def differences(attrs: dict[str, str] | None = None, kinks: float = 0, **changed: Numbers) -> xr.Dataset:
    arrays: dict[str, Any] = {
        name + end: (("precision", "scheme"), [[value, value]])
        for name, default in DIFFERENCES.items()
        for end, value in zip(ENDS, changed.get(name, default), strict=True)
    }
    arrays["kinks"] = (("precision", "scheme"), [[kinks, kinks]])
    arrays |= {name: (("precision", "epsilon"), [[1e-7, value]]) for name, value in (("drift", 5e-7), ("unmoved", 0.2))}
    coordinates = {"precision": ["float32"], "scheme": ["one-sided", "central"], "epsilon": [1e-6, 2e-3]}
    return xr.Dataset(arrays, coords=coordinates, attrs=attrs or {})


def cost() -> xr.Dataset:
    """Of a step with a fixed price of 4 passes and of 1 a guess; seconds in the same ratio, known to a twentieth."""
    passes = np.array([[3.0, 3.0], [5.0, 8.0]])
    values = {"passes": passes, "relative_passes": passes / 3}
    for name, seconds in (("seconds", passes), ("relative_seconds", passes / 3)):
        values |= {name: seconds, f"{name}_low": 0.95 * seconds, f"{name}_high": 1.05 * seconds}
    coordinates = {"estimator": ["backpropagation", "weight"], "averaged": [1, 4]}
    return xr.Dataset({n: (("estimator", "averaged"), v) for n, v in values.items()}, coords=coordinates)


def said(*args: Any, **settings: Any) -> str:
    return "\n".join(fga.advise(*args, **settings).sentences)


def test_a_step_is_advised_beside_that_of_backpropagation() -> None:
    advice = fga.advise(progress())
    (row,) = advice.table.to_dict("records")
    assert [row["relative_step" + end] for end in ENDS] == pytest.approx([0.1, 0.09, 0.11])
    assert [row["steps_for_one" + end] for end in ENDS] == pytest.approx([10, 1 / 0.11, 1 / 0.09])
    assert [row["balanced_guesses" + end] for end in ENDS] == [9, 9, 11]
    text = str(advice)
    assert "weight: step size 0.2 (0.18 to 0.22), predicted 0.2; 0.1 (0.09 to 0.11) times that of" in text
    assert "weight: 10 (9.09 to 11.1) steps make up for one of backpropagation" in text
    assert "weight: beyond 9 (9 to 11) guesses a step (1/curved_efficiency − 1)" in text
    assert "diagnosis=fga.diagnose" in text and "kinks" not in text


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"slope_along": (-1, -2, 0.5)}, "does not point downhill, slope_along is −1 (−2 to 0.5)"),
        ({"slope_along": (1, -0.5, 2)}, "the interval of slope_along, −0.5 to 2, holds zero"),
        ({"curvature_along": (-1, -2, 1)}, "curvature_along is not positive, −1 (−2 to 1)"),
        ({"curvature_along": (1, -2, 3)}, "the interval of curvature_along, −2 to 3, holds zero"),
        ({"best_step": (0.2, 0.05, 0.3)}, "its interval, 0.05 to 0.3, is wide: not within a factor of 2 of 0.2"),
        ({"best_step": (0.2, 0.15, INF)}, "its interval has no upper bound, it begins at 0.15"),
        ({"best_step": (0.2, NAN, NAN)}, "it has no interval, which takes at least 32 guesses"),
        ({"unseen_curvature": (3, 2.5, 3.5)}, "the loss curves 300% more (unseen_curvature 2.5 to 3.5)"),
        ({"unseen_curvature": (-0.6, -0.7, -0.55)}, "the loss curves 60% less (unseen_curvature −0.7 to −0.55)"),
        ({"unseen_curvature": (0.5, -0.2, 1.3)}, "the loss may curve 50% more (unseen_curvature −0.2 to 1.3)"),
    ],
)
def test_no_step_is_advised_where_the_numbers_do_not_allow_it(changed: Any, sentence: str) -> None:
    advice = fga.advise(progress(**changed))
    assert np.isnan(advice.table["step_size"].item()) and np.isnan(advice.table["relative_step"].item())
    (no_step,) = [text for text in advice.sentences if "no step size is advised" in text]
    assert sentence in no_step


def test_curvature_that_h_does_not_show_moves_the_step() -> None:
    text = said(progress(unseen_curvature=(0.25, 0.2, 0.3)))
    assert "the loss curves 25% more (unseen_curvature 0.2 to 0.3)" in text and "is nearer to 0.16." in text


def test_without_curvature_along_the_gradient_there_is_nothing_to_compare_with() -> None:
    missing = {"curved_efficiency": (NAN, NAN, NAN), "gradient_curvature": -1.0, "gradient_step": INF}
    text = said(progress(**missing, attrs={"cautions": json.dumps({"network": ["the loss has kinks"]})}))
    assert "weight: step size 0.2 (0.18 to 0.22), predicted 0.2." in text
    assert "no best step to compare with: its curvature gᵀHg is −1." in text
    assert "is not known: the curvature along the gradient, −1, is not positive" in text
    assert text.startswith("Network: the loss has kinks.")


def test_guesses_to_balance_of_a_biased_guess_follow_from_its_mean_curvature() -> None:
    text = said(progress(predicted=False, mean_curvature=(4, 3.6, 4.4)))
    assert "beyond 4 (4 to 6) guesses a step (curvature_along/mean_curvature − 1)" in text
    text = said(progress(predicted=False, mean_curvature=(4, -1, 9)))
    assert "are worth their price is not known: the interval of mean_curvature, −1 to 9, holds zero" in text
    text = said(progress(predicted=False, mean_curvature=(16, 15, 17), curvature_along=(20, 19, 21)))
    assert "averaging any number of guesses adds at most 25% (12% to 40%; curvature_along/mean_curvature − 1)" in text
    told = said(progress(predicted=False, mean_curvature=(4, -1, 9)), diagnosis=diagnosis())
    assert "beyond 9 (9 to 11) guesses a step (1/curved_efficiency − 1)" in told  # Unbiased by its prediction.


def test_the_number_to_balance_is_where_theory_makes_half_of_its_limit() -> None:
    assert of_averaged(0.1, 9) == pytest.approx(0.5)


def test_price() -> None:
    text = said(progress(), cost=cost(), averaged=1)
    assert "at 16.7 (15.2 to 18.5) times its passes and 16.7 (14.4 to 19.4) times its seconds" in text
    numbers = np.arange(1, 40)
    best = numbers[np.argmax(of_averaged(0.1, numbers) / (4 + numbers))]
    assert best == 6 and "the mean of 6 (6 to 7) guesses makes the most progress for its passes" in text
    assert "the mean of 6 (5 to 8) guesses makes the most progress for its seconds" in text


def test_steps_along_means_are_other_steps() -> None:
    text = said(progress(), averaged=4)
    assert "step size along the mean of 4 guesses 0.2" in text and "fga.estimators.Averaged(estimator, 4)" in text
    assert "steps of 4 guesses each make up for one" in text


def test_guesses_for_a_cosine() -> None:
    """Unbiased: m = (1/ρ² − 1)/(1/κ² − 1)."""
    advice = fga.advise(diagnosis(), target_cosine=0.5)
    assert advice.table["guesses_for_cosine"].item() == 99 / 3
    assert "fga.progress(snapshot, estimators) measures it" in advice.sentences[0]
    assert np.isnan(advice.table["step_size"].item())
    assert "weight: 33 (30 to 37) guesses for a cosine of 0.5" in str(advice)
    assert "1 (1 to 1) guesses for a cosine of 0.05" in said(diagnosis(), target_cosine=0.05)
    text = said(diagnosis(angle=0.9, directional_bias=(0.9, 0.85, 0.95)), target_cosine=0.5)
    assert "no number of guesses for a cosine of 0.5 is enough: the cosine of the mean guess is at most 0.316" in text
    text = said(diagnosis(angle=NAN, directional_bias=(0.5, 0.2, 0.9)), target_cosine=0.5)
    assert "is advised: its interval has no upper bound, it begins at 33" in text
    text = said(diagnosis(angle=NAN, directional_bias=(NAN, NAN, NAN)), target_cosine=0.5)
    assert "directional_bias has no interval" in text
    assert "the interval of efficiency, 0 to 0.1, holds zero" in said(diagnosis(efficiency=(0.01, 0, 0.1)))


def test_a_prediction_that_the_measurement_rejects_is_not_used() -> None:
    assert "directional_bias measured" in said(diagnosis(angle=0.3), target_cosine=0.5)


def test_layers_that_hold_the_noise() -> None:
    text = said(diagnosis(layers=[(0.8, 0.7, 0.9), (0.2, 0.1, 0.3)]))
    assert "layer a holds 80% of the noise (70% to 90% of the variance) and 36% of the squared gradient" in text
    advice = fga.advise(diagnosis(layers=[(0.55, 0.4, 0.7), (0.45, 0.3, 0.6)]))
    assert "is open: the intervals of variance overlap in a, b" in str(advice)
    assert advice.table["noisiest_layer"].item() == ""
    assert "no layer is known to hold noise" in said(diagnosis(variance=(0, 0, 1e-12)))


def test_epsilon_and_drift() -> None:
    advice = fga.advise(progress(), differences=differences())
    assert list(advice.epsilons["best_epsilon"]) == [1e-3, 1e-3]
    text = str(advice)
    assert "float32, central difference: ε = 0.001 (0.0009 to 0.0011); its slope is off by 0.1 (0.09 to 0.11)" in text
    assert "leaves 5e-07 of ‖θ‖ in the weights every time (at ε = 0.002), and 20% of the weights do not move." in text
    assert "subtracting it once leaves nothing in the weights" in text
    text = said(progress(), differences=differences(best_epsilon=(1e-3, 1e-4, 1e-2), kinks=1))
    assert "float32, central difference: no ε is advised: its interval, 0.0001 to 0.01, is wide" in text
    text = said(progress(), differences=differences(kinks=1, least_slope_error=(2, 1.8, 2.2)))
    assert "by kinks and not by derivatives" in text and "take a higher precision" in text
    text = said(progress(), differences=differences({"not_measured": json.dumps({"float32": "it overflows"})}))
    assert "float32: no ε is advised, since nothing was measured: it overflows." in text


def test_an_estimator_that_was_not_measured() -> None:
    nothing = {name: (NAN, NAN, NAN) for name in PROGRESS}
    text = said(progress(**nothing, attrs={"not_measured": json.dumps({"weight": "it failed"})}))
    assert "weight: nothing is advised, since it was not measured: it failed." in text


def test_flags_are_named() -> None:
    assert Bounded(2, 1.5, 3, short=True).text() == "2 (1.5 to 3, perhaps too short)"
    assert Bounded(2, 1.5, 3, wide=True).text() == "2 (1.5 to 3, wide)"


@pytest.mark.parametrize(
    ("results", "settings", "message"),
    [
        (3, {}, "results must be the Dataset that fga.progress returns, or the tree of fga.diagnose, got 3"),
        (cost(), {}, "results must be the Dataset that fga.progress returns: it has no 'step'"),
        (progress().drop_vars("gradient_step"), {}, "results must be the Dataset that fga.progress returns: it has no"),
        (progress(), {"diagnosis": progress()}, "diagnosis must be the tree that fga.diagnose returns, got Dataset"),
        (progress(), {"diagnosis": xr.DataTree()}, "the tree has no /measured node"),
        (progress(), {"cost": progress()}, "cost must be the Dataset that fga.cost returns"),
        (progress(), {"differences": cost()}, "differences must be the Dataset that fga.difference_step returns"),
        (progress(), {"averaged": 3}, "results lacks 3 of the numbers averaged; it has 1, 4"),
        (progress(), {"target_cosine": 2}, "target_cosine must be a finite number above 0 and at most 1, got 2"),
        (diagnosis(), {"cost": cost()}, "diagnosis and cost go beside the Dataset of fga.progress"),
        (progress().assign_coords(step=[7]), {"diagnosis": diagnosis()}, "the diagnosis lacks the step 7"),
    ],
)
def test_wrong_datasets_are_refused(results: Any, settings: Any, message: str) -> None:
    found = refusal(lambda: fga.advise(results, **settings))
    assert found is not None and found.startswith(message)


def test_advice_of_a_real_run_comes_true() -> None:
    """The advised number of guesses has the cosine, to within 5 % and noise, and the step is that of the Dataset."""
    network = fga.networks.mlp([5, 6, 3], bias=False, activation=torch.nn.Tanh, seed=0)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(8, 5, generator=generator), torch.randint(3, (8,), generator=generator)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, *batch)
    measured, tree = fga.progress(snapshot, "weight", 256), fga.diagnose(snapshot, "weight", 1024, subspace=False)
    (row,) = fga.advise(measured, diagnosis=tree, target_cosine=0.6).table.to_dict("records")
    assert row["step_size"] == measured["best_step"].sel(averaged=1).item()
    m = int(row["guesses_for_cosine"])
    reached = fga.sample(snapshot, fga.estimators.Averaged("weight", m), 512).sel(space="weight", layer="all")
    assert abs(float(reached["cosine"]) - 0.6) <= 0.03
    frame = fga.advise(measured.isel(estimator=0, step=0), diagnosis=tree).table
    assert frame["step_size"].item() == row["step_size"]
