"""The package on a real GPU, against the CPU. Skipped by name where torch finds none."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.results import schema
from tests.devices.paths import captured, numbers_of, snapshot_on, trained
from tests.networks.zoo import ZOO

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]
GPU, CPU = torch.device("cuda"), torch.device("cpu")
# Of all that is compared below, with a probability of 1e-2 altogether.
LARGEST_Z = 4.0
GUESSES = 4096
COMPARED = ("bias", "variance", "mse", "cosine")


def assert_close(there: Any, here: Any, rtol: float) -> None:
    found, expected = numbers_of(there), numbers_of(here)
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        scale = np.nanmax(np.abs(numbers), initial=0.0)
        np.testing.assert_allclose(found[name], numbers, rtol=rtol, atol=rtol * float(scale), err_msg=name)


@pytest.mark.parametrize("name", ZOO)
def test_exact_gradients_and_slopes_are_those_of_the_cpu(name: str) -> None:
    path = partial(captured, name, "reverse")
    assert_close(path(GPU), path(CPU), 1e-8)


@pytest.mark.parametrize("key", fga.estimators.ESTIMATORS)
def test_guesses_have_the_law_that_they_have_on_the_cpu(key: str) -> None:
    there, here = (fga.sample(snapshot_on(device), key, GUESSES, seed=1) for device in (GPU, CPU))
    precision = 1e-5 * here["gradient_norm"]  # What single precision leaves of the exact gradient.
    for name in COMPARED:
        error = np.hypot(there[name + schema.SE], here[name + schema.SE])
        z = abs(there[name] - here[name]) / (error + (1e-5 if name == "cosine" else precision))
        assert float(z.max()) <= LARGEST_Z or z.isnull().all(), f"{name} differs by {float(z.max()):.1f} errors"


@pytest.mark.parametrize("key", fga.estimators.ESTIMATORS)
def test_predictions_are_those_of_the_cpu(key: str) -> None:
    assert_close(fga.predict(snapshot_on(GPU), key), fga.predict(snapshot_on(CPU), key), 1e-4)


@pytest.mark.parametrize("key", ["backpropagation", "feedback_alignment"])
def test_training_without_noise_is_that_of_the_cpu(key: str) -> None:
    assert_close(trained(key, GPU), trained(key, CPU), 1e-3)


@pytest.mark.parametrize("key", ["weight", "activity", "forward_direct_feedback"])
def test_training_by_guesses_runs_and_goes_on(key: str) -> None:
    log, weights = trained(key, GPU)
    assert all(parameter.device.type == "cuda" for parameter in weights.values())
    assert np.isfinite(log["loss"]).all()


def test_a_wrong_multiple_of_the_law_is_seen() -> None:
    """A sample of guesses with other noise differs: the comparison above can fail."""
    there = fga.sample(snapshot_on(GPU), fga.estimators.Averaged(fga.estimators.ActivityPerturbation(), 2), GUESSES)
    here = fga.sample(snapshot_on(CPU), "activity", GUESSES)
    z = abs(there["variance"] - here["variance"]) / np.hypot(there["variance_se"], here["variance_se"])
    assert float(z.max()) > LARGEST_Z


def test_a_block_that_does_not_fit_is_made_in_parts() -> None:
    snapshot, estimator = snapshot_on(GPU), fga.estimators.ActivityPerturbation()
    expected = fga.sample(snapshot, estimator, GUESSES, block_size=GUESSES)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    # Room for the noise and little more than is reserved already.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 40 * 2**20) / total)
    try:
        found = fga.sample(snapshot, estimator, GUESSES, block_size=GUESSES)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(found["squared_norm"], expected["squared_norm"], rtol=1e-3)


def test_nothing_is_rounded_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = snapshot_on(GPU, torch.float64).weight_gradients
    torch.set_float32_matmul_precision("high")
    try:
        found = snapshot_on(GPU).weight_gradients
    finally:
        torch.set_float32_matmul_precision("highest")
    for single, double in zip(found, exact, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5 * float(double.abs().max()))


def test_a_monitor_leaves_no_trace_in_a_training_on_the_gpu() -> None:
    """Dropout draws from the GPU's generator what it would draw without."""

    def losses(watched: bool) -> list[float]:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 3)).to(GPU)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        loss_fn = torch.nn.functional.cross_entropy
        monitor = fga.Monitor(network, loss_fn, ["weight", "activity"], every=1, guesses=32)
        inputs, targets = torch.randn(16, 8, device=GPU), torch.arange(16, device=GPU) % 3
        found = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = loss_fn(network(inputs), targets)
            loss.backward()
            if watched:
                monitor.step(inputs, targets)
            optimizer.step()
            found.append(float(loss.detach()))
        assert not watched or not monitor.dataset["loss"].isnull().any()
        return found

    assert losses(watched=True) == losses(watched=False)
