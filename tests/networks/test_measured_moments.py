"""What `fga.sample` measures on every network of the zoo, against moments found without the package."""

from __future__ import annotations

import dataclasses

import pytest

import fganalysis as fga
from fganalysis.estimators import ActivityPerturbation
from tests.networks.brute_force import taps
from tests.networks.exact_moments import Dense, Moments, dense, moments
from tests.networks.zoo import ZOO, Case

# Variances of 1024 guesses have standard errors of 5 to 15 %, so that 4 of them see a wrong factor of 1.6 at worst.
N_GUESSES, MOST_ERRORS = 1024, 4.0


def z_scores(case: Case, slope: str, expected: Moments) -> dict[str, float]:
    """By layer, how many standard errors the measured variance of the gradient's guess is from the expected one."""
    snapshot = fga.capture(case.network, case.loss_fn, case.inputs, case.targets)
    measured = fga.sample(snapshot, ActivityPerturbation(slope=slope), N_GUESSES, seed=0).sel(space="weight")
    found = {}
    for layer in snapshot.weights:
        if not set(layer.parameter_names) <= set(expected):
            continue
        exact = sum(float(expected[name][1].sum()) for name in layer.parameter_names)
        here = measured.sel(layer=layer.name)
        found[layer.name] = ((here.variance - exact) / here.variance_se).item()
    return found


@pytest.mark.parametrize("name", ZOO)
def test_variances_of_activity_perturbation_are_the_exact_ones(name: str) -> None:
    case = ZOO[name]()
    names = taps(case.network, case.inputs)
    scores = z_scores(case, "example", moments(dense(case, names)))
    assert len(scores) == len(names) - (name == "gpt_tied")  # Its head and its embedding are one layer.
    assert max(abs(score) for score in scores.values()) <= MOST_ERRORS, scores


@pytest.mark.parametrize("name", ["conv", "gpt_tied", "lstm", "called_twice", "weighted_tokens", "windows_first"])
def test_variances_with_batch_slopes_are_the_exact_ones(name: str) -> None:
    case = ZOO[name]()
    scores = z_scores(case, "batch", moments(dense(case, taps(case.network, case.inputs)), "batch"))
    assert max(abs(score) for score in scores.values()) <= MOST_ERRORS, scores


def test_rows_given_to_the_wrong_example_are_seen() -> None:
    case = ZOO["windows"]()
    known = dense(case, ["first", "read"])
    wrong: Dense = dataclasses.replace(known, owners=known.owners.roll(6))
    scores = z_scores(case, "example", moments(wrong))
    assert max(abs(score) for score in scores.values()) > MOST_ERRORS


def test_a_tied_weight_counted_twice_is_seen() -> None:
    case = ZOO["gpt_tied"]()
    known = dense(case, taps(case.network, case.inputs))
    twice = {name: value * 2 if name == "tokens.weight" else value for name, value in known.jacobians.items()}
    scores = z_scores(case, "example", moments(dataclasses.replace(known, jacobians=twice)))
    assert abs(scores["tokens"]) > MOST_ERRORS
