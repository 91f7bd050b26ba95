"""Guesses along directions that are too large to be held are the guesses that direct ones are, whatever the parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import fganalysis as fga
from fganalysis.capturing.coordinates import squared_gradients
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Averaged, Estimator, FiniteDifference, MultiTangent, WeightPerturbation
from fganalysis.estimators.noise import GAUSSIAN, ON_SPHERE, RADEMACHER, Noise
from fganalysis.estimators.tangents_of_weights import tangents_of
from fganalysis.measuring import streamed
from fganalysis.measuring.blocks import Seeds

ESTIMATORS: list[Estimator] = [
    WeightPerturbation(),
    WeightPerturbation(noise=RADEMACHER, layers="separate"),
    WeightPerturbation(noise=ON_SPHERE),
    MultiTangent(k=3),
    MultiTangent(k=3, combine="orthogonal"),
    MultiTangent(k=3, combine="orthogonal", layers="separate", noise=ON_SPHERE),
    Averaged(MultiTangent(k=2, combine="orthogonal"), 2),
]
N_GUESSES = 2000


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "STREAMED_FROM", 100)
    monkeypatch.setattr(streamed, "NUMBERS_PER_PART", 40)


def snapshot_of(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Snapshot:
    network = fga.networks.mlp([7, 9, 4], bias=True, seed=0).to(dtype)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 7, generator=generator).to(dtype)
    return fga.capture(network, lambda outputs, y: scale * cross_entropy(outputs, y), inputs, torch.arange(5) % 4)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_numbers_are_those_of_the_guesses_written_out(estimator: Estimator) -> None:
    snapshot = snapshot_of(dtype=torch.float64)
    squares = squared_gradients(snapshot, at_activations=False)
    law, seeds = tangents_of(estimator), Seeds.of(0, snapshot, estimator)
    assert law is not None
    raw = streamed.raw_numbers(law, snapshot, squares, 130, seeds)
    sizes = np.array([float(layer.weight.numel()) for layer in snapshot.weights])
    stream = streamed.Stream(law, sizes, streamed._parts(snapshot, 1.0), seeds)
    generator = torch.Generator()
    for number, gradient in enumerate(snapshot.weight_gradients):
        written = []
        for guess in range(130):
            parts = zip(stream.parts, stream.part_seeds(guess), strict=True)
            drawn = [stream.draw(part, seed, generator) for part, seed in parts if part.layer == number]
            written.append(stream.numbers(guess)[2][number] @ torch.cat(drawn, dim=1).numpy())
        guesses, exact = np.array(written), gradient.flatten().numpy()
        np.testing.assert_allclose(raw.inner_product[1, number], guesses @ exact, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(raw.squared_norm[1, number], (guesses**2).sum(1), rtol=1e-9)
        groups = raw.group_of_guess
        errors = np.array([guesses[groups == group].mean(0) for group in range(groups.max() + 1)]) - exact
        np.testing.assert_allclose(raw.gram[1, number], errors @ errors.T, rtol=1e-9, atol=1e-12)
        if law.combine == "mean" and law.layers == "joint":
            assert np.isclose(raw.inner_product[1, -1, 0], raw.inner_product[1, :-1, 0].sum())


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_they_have_the_moments_of_direct_guesses(estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = snapshot_of()
    ours = fga.sample(snapshot, estimator, N_GUESSES, seed=1)
    monkeypatch.setattr(streamed, "STREAMED_FROM", 10**9)
    direct = fga.sample(snapshot, estimator, N_GUESSES, seed=2)
    assert ours.attrs[fga.schema.METRICS_LEFT_OUT] == json.dumps([])
    assert fga.schema.METRICS_LEFT_OUT not in direct.attrs
    for name in ("variance", "cosine", "shrinkage", "efficiency", "squared_bias"):
        difference = ours[name] - direct[name]
        error = np.hypot(ours[f"{name}_se"], direct[f"{name}_se"])
        assert float(abs(difference / error).sel(space="weight").max()) < 4.5, name
    for number in ("inner_product", "squared_norm"):
        both = [part[number].sel(space="weight") for part in (ours, direct)]
        error = np.hypot(*(part.std("guess") / N_GUESSES**0.5 for part in both))
        assert float(abs((both[0].mean("guess") - both[1].mean("guess")) / error).max()) < 4.5, number


@pytest.mark.parametrize("noise", [GAUSSIAN, RADEMACHER, ON_SPHERE], ids=repr)
def test_they_have_the_predicted_moments(noise: Noise) -> None:
    snapshot, estimator = snapshot_of(), WeightPerturbation(noise=noise)
    measured, predicted = fga.sample(snapshot, estimator, N_GUESSES), fga.predict(snapshot, estimator)
    z = (measured.variance - predicted.variance) / measured.variance_se
    assert float(abs(z).sel(space="weight").max()) < 4


def test_nothing_depends_on_workers_and_memory_and_a_longer_run_begins_with_the_shorter() -> None:
    snapshot = snapshot_of()
    alone, together = (fga.sample(snapshot, "weight", 100, workers=workers) for workers in (1, 3))
    assert alone.identical(together)
    assert alone.identical(fga.sample(snapshot, "weight", 100, memory=2**19))
    longer = fga.sample(snapshot, "weight", 150)
    assert longer.squared_norm.isel(guess=slice(100)).identical(alone.squared_norm)


@pytest.mark.parametrize("scale", [1e-22, 1e22])
def test_the_scale_of_the_loss_changes_no_relative_number(scale: float) -> None:
    plain, scaled = (fga.sample(snapshot_of(factor), "weight", 100) for factor in (1.0, scale))
    for name in ("cosine", "relative_bias", "efficiency"):
        np.testing.assert_allclose(scaled[name].values, plain[name].values, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scaled.squared_norm / scale**2, plain.squared_norm, rtol=1e-4)


def test_what_does_not_fit_is_said_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="memory must be at least 1 MiB"):
        fga.sample(snapshot_of(), "weight", 100, memory=1000)


def test_only_guesses_made_of_slopes_along_directions_are_streamed() -> None:
    snapshot = snapshot_of()
    assert streamed.is_streamed(WeightPerturbation(), snapshot)
    assert not streamed.is_streamed(FiniteDifference(), snapshot)
    assert not streamed.is_streamed(fga.estimators.ActivityPerturbation(), snapshot)
    assert not streamed.is_streamed(MultiTangent(k=streamed.MOST_DIRECTIONS + 1), snapshot)


MEMORY = """
import torch
import fganalysis as fga

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

network = fga.networks.mlp([64, 4096, 4096, 10], bias=False, seed=0)
snapshot = fga.capture(network, torch.nn.functional.cross_entropy, torch.randn(2, 64), torch.arange(2))
snapshot.weight_gradients
largest = 4 * max(gradient.numel() for gradient in snapshot.weight_gradients)
open("/proc/self/clear_refs", "w").write("5")
before = peak()
fga.sample(snapshot, "weight", 8)
print((peak() - before) / largest)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read as Linux shows them")
def test_memory_is_a_few_copies_of_the_largest_parameter() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    copies = float(done.stdout)
    # Sums of whole guesses over eight groups alone would be more than eight copies.
    assert copies < 3
