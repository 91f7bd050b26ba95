"""A metric of one's own takes one call, and is then sampled, predicted, compared and shown like every other."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Averaged
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, Sums
from fganalysis.metrics import Groups, Metric, mean_of_groups
from fganalysis.predictions import Guess
from fganalysis.results import schema, store
from fganalysis.statistics.intervals import Estimate

VARIABLE = schema.Variable("mean absolute error of an entry of a guess", schema.GRADIENT_UNITS, (schema.LAYER,))


def keep(snapshot: Snapshot, guesses: Estimates) -> Sums:
    if not isinstance(guesses, ActivationEstimates):
        return ()
    pairs = zip(guesses.guesses, snapshot.gradients, strict=True)
    return tuple((guess - gradient).abs().mean((1, 2)).double().sum() for guess, gradient in pairs)


def estimates(snapshot: Snapshot, groups: Groups) -> dict[str, Estimate]:
    layers = np.stack([*groups.averages(), np.full(len(groups.sizes), np.nan)])
    return {"mean_absolute_error": mean_of_groups(layers, groups.sizes)}


def theory(snapshot: Snapshot, guess: Guess) -> Mapping[str, Any]:
    """Of guesses that are all alike."""
    if guess.activations is None or not guess.certain:
        return {}
    pairs = zip(guess.activations, snapshot.gradients, strict=True)
    errors = [np.abs(moments.mean - gradient.double().numpy()).mean() for moments, gradient in pairs]
    return {"mean_absolute_error": np.array([*errors, np.nan])}


METRIC = Metric(
    "absolute_error", {"mean_absolute_error": VARIABLE}, keep, estimates, theory, compared=("mean_absolute_error",)
)


@pytest.fixture
def registered() -> Iterator[None]:
    fga.register_metric(METRIC)
    yield
    fga.metrics.withdraw_metric(METRIC.name)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    before = list(schema.variables())
    yield
    assert list(schema.variables()) == before


def captured() -> Snapshot:
    network = fga.networks.mlp([4, 6, 3], bias=False, seed=3, activation=torch.nn.Tanh, dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.tensor([0, 1, 2, 0, 1]))


SNAPSHOT = captured()


@pytest.mark.usefixtures("registered")
def test_a_metric_is_sampled_as_what_it_says() -> None:
    """All guesses again, by the seeds of the sampler's blocks: the same mean, to rounding."""
    drawn: list[torch.Tensor] = []

    def activity(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        guesses = fga.estimators.ActivityPerturbation()(snapshot, n_guesses, generator)
        drawn.append((guesses.guesses[0] - snapshot.gradients[0]).abs().mean((1, 2)))
        return guesses

    dataset = fga.sample(SNAPSHOT, activity, 512, seed=0, block_size=16, workers=1)
    errors = torch.cat(drawn[1:]).numpy()  # The first call asks for the size of a guess.
    first = dataset.sel(layer=SNAPSHOT.layers[0])
    assert float(first["mean_absolute_error"]) == pytest.approx(errors.mean(), rel=1e-12)
    spread = errors.std(ddof=1) / np.sqrt(512)
    # Of 32 groups: the error of a standard error is 13 %.
    assert float(first["mean_absolute_error_se"]) == pytest.approx(spread, rel=0.5)
    assert first["mean_absolute_error_low"] < first["mean_absolute_error"] < first["mean_absolute_error_high"]
    assert dataset["mean_absolute_error"].attrs == {"long_name": VARIABLE.long_name, "units": VARIABLE.units}
    assert dataset["mean_absolute_error"].sel(layer="all").isnull()


@pytest.mark.usefixtures("registered")
def test_a_metric_stands_beside_its_theory_in_every_table(tmp_path: Path) -> None:
    tree = fga.diagnose(SNAPSHOT, ["direct_feedback", "activity", "weight"], n_guesses=256)
    frame = fga.summary(tree, ["mean_absolute_error"]).set_index("estimator")
    exact = frame.loc["direct_feedback"]
    np.testing.assert_allclose(exact["mean_absolute_error"], exact["mean_absolute_error_predicted"], rtol=1e-10)
    assert frame.loc["activity", "mean_absolute_error"].gt(0).all()
    assert frame.loc["activity", "mean_absolute_error_predicted"].isnull().all()
    # Nothing is kept of guesses at the weights, which have no row in a table of the activations.
    assert tree["measured"]["mean_absolute_error"].sel(estimator="weight").isnull().all()
    assert "weight" not in frame.index
    assert "mean_absolute_error" in fga.agreement(tree)["quantity"].tolist()
    assert "mean_absolute_error" not in fga.summary(tree).columns, "only when asked for"
    store.write(tree, tmp_path / "tree.nc")
    fga.open_results(tmp_path / "tree.nc")
    fga.metrics.withdraw_metric(METRIC.name)
    with pytest.raises(ValueError, match=r"unknown variable 'mean_absolute_error.*fga\.register_metric"):
        schema.validate(tree["measured"].to_dataset())


def test_results_from_before_a_metric_was_registered_are_still_compared() -> None:
    tree = fga.diagnose(SNAPSHOT, ["activity"], n_guesses=256)
    before = fga.agreement(tree)
    fga.register_metric(METRIC)
    after = fga.agreement(tree)
    fga.metrics.withdraw_metric(METRIC.name)
    assert before.equals(after)


def test_the_other_numbers_do_not_depend_on_what_is_registered() -> None:
    without = fga.sample(SNAPSHOT, "activity", 100)
    fga.register_metric(METRIC)
    beside = fga.sample(SNAPSHOT, "activity", 100)
    fga.metrics.withdraw_metric(METRIC.name)
    assert beside[list(without.data_vars)].identical(without)


def test_a_metric_over_both_spaces() -> None:
    """The number of guesses, which is the same everywhere."""

    def ones(snapshot: Snapshot, guesses: Estimates) -> Sums:
        return (torch.tensor(float(len(guesses)), dtype=torch.float64),)

    def counted(snapshot: Snapshot, groups: Groups) -> dict[str, Estimate]:
        shape = (len(schema.SPACES), len(snapshot.taps) + 1, len(groups.sizes))
        return {"counted": mean_of_groups(np.broadcast_to(groups.averages()[0], shape), groups.sizes)}

    fga.register_metric(Metric("counting", {"counted": schema.Variable("one a guess", "1")}, ones, counted))
    for estimator in ("weight", Averaged("activity", 2)):
        dataset = fga.sample(SNAPSHOT, estimator, 100, block_size=3)
        assert dataset["counted"].dims == ("space", "layer")
        np.testing.assert_allclose(dataset["counted"], 1.0)
        np.testing.assert_allclose(dataset["counted_se"], 0.0, atol=1e-12)
    fga.metrics.withdraw_metric("counting")


@pytest.mark.usefixtures("registered")
def test_a_metric_registered_again_is_replaced() -> None:
    fga.register_metric(replace(METRIC, variables={"absolute_error_of_an_entry": VARIABLE}, theory=None, compared=()))
    assert "mean_absolute_error" not in schema.variables()
    assert "absolute_error_of_an_entry_low" in schema.variables()


def test_groups_of_other_sizes_count_by_their_guesses() -> None:
    generator = np.random.default_rng(0)
    sizes = np.array([16.0] * 15 + [4.0])
    values = generator.normal(size=(3, 16))
    found = mean_of_groups(values, sizes)
    np.testing.assert_allclose(found.value, (values * sizes).sum(-1) / sizes.sum())
    few = mean_of_groups(values[:, :3], sizes[:3])
    assert np.isfinite(few.value).all() and np.isnan(few.low).all()


def test_the_examples_of_the_module_run_as_printed() -> None:
    printed = [line for line in (fga.metrics.__doc__ or "").splitlines() if line.startswith("    ") or not line]
    exec(textwrap.dedent("\n".join(printed)), {})
    tree = fga.diagnose(SNAPSHOT, ["activity", "weight"], n_guesses=256)
    frame = fga.summary(tree, ["mean_absolute_error"])
    assert set(frame["estimator"]) == {"activity"} and frame["mean_absolute_error"].gt(0).all()
    frame = fga.summary(tree, ["weight_error"]).query("estimator == 'weight' and layer != 'all'")
    assert set(frame["space"]) == {"weight"} and frame["weight_error"].gt(0).all()
    for name in ("absolute_error", "weights"):
        fga.metrics.withdraw_metric(name)


@pytest.mark.usefixtures("registered")
def test_guesses_at_the_weights_have_no_variable_at_the_activations() -> None:
    def keep_all(snapshot: Snapshot, guesses: Estimates) -> Sums:
        return tuple(torch.ones(3, len(snapshot.taps), dtype=torch.float64).sum(0))

    fga.register_metric(replace(METRIC, keep=keep_all))
    assert fga.sample(SNAPSHOT, "activity", 64)["mean_absolute_error"].notnull().any()
    with pytest.raises(ValueError, match=r"at the weights: give the variable the dims \('space', 'layer'\)$"):
        fga.sample(SNAPSHOT, "weight", 64)


BIAS = {"bias": VARIABLE}


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("absolute_error", r"metric must be a fganalysis\.metrics\.Metric, got 'absolute_error'"),
        (replace(METRIC, variables=BIAS, compared=()), "the metric 'absolute_error' has the variable 'bias', which"),
        (replace(METRIC, variables={}, compared=()), "the metric 'absolute_error' has no variable"),
        (replace(METRIC, variables=["x"]), r"variables of the metric 'absolute_error' must be a mapping from names to"),
        (replace(METRIC, variables={"x": "units"}), r"the variable 'x' must be a fga\.schema\.Variable, got 'units'"),
        (replace(METRIC, exact={"x": replace(VARIABLE, dims=("guess",))}), "the variable 'x' must have the dims "),
        (replace(METRIC, compared=("bias",)), "compared of the metric 'absolute_error' has the unknown name 'bias'"),
        (replace(METRIC, keep=None), r"keep of the metric 'absolute_error' must be a function of \(snapshot, gu"),
        (replace(METRIC, estimates=len), r"estimates of the metric 'absolute_error' must be a function of "),
        (replace(METRIC, theory=3), r"theory of the metric 'absolute_error' must be a function of"),
    ],
)  # fmt: skip
def test_wrong_metrics_are_refused(metric: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fga.register_metric(metric)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"keep": lambda snapshot, guesses: [1.0]}, "the metric 'absolute_error' must keep a tuple of float64 tensors"),
        (
            {"estimates": lambda snapshot, groups: {"x": Estimate.missing((3,))}},
            "the metric 'absolute_error' has estimated 'x', which is none of its variables",
        ),
        (
            {"estimates": lambda snapshot, groups: {"mean_absolute_error": Estimate.missing((2,))}},
            r"the metric 'absolute_error' must give an Estimate of shape \(3,\) for 'mean_absolute_error'",
        ),
        ({"theory": lambda snapshot, guess: {"x": 1.0}}, "the theory of the metric 'absolute_error' names 'x', not a "),
        (
            {"theory": lambda snapshot, guess: {"mean_absolute_error": np.ones(2)}},
            r"must give 'mean_absolute_error' in shape \(3,\), got \(2,\)",
        ),
    ],
)
def test_what_a_metric_gives_is_checked(changed: dict[str, Any], message: str) -> None:
    fga.register_metric(replace(METRIC, **changed))
    call = fga.predict if "theory" in changed else fga.sample
    with pytest.raises(ValueError, match=message):
        call(SNAPSHOT, "activity")
    fga.metrics.withdraw_metric(METRIC.name)
