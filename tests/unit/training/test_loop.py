"""Training: any gradient lowers the loss, runs go on from checkpoints, and diverging runs keep what they have."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.estimators import Estimator, label
from fganalysis.training import loop
from fganalysis.training.datasets import Dataset
from tests.unit.training.small_run import DATA, GRADIENTS, NETWORK, same


@pytest.mark.parametrize("gradient", [*GRADIENTS, fga.estimators.ForwardDirectFeedback(rate=0.1)], ids=label)
def test_a_run_continued_from_any_checkpoint_is_the_same_run(gradient: str | Estimator, tmp_path: Path) -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)

    def train(**settings: Any) -> loop.Run:
        return fga.train(NETWORK, DATA, gradient, epochs=3, batch_size=25, schedule=schedule, **settings)

    whole = train(checkpoints=[0, 4, 9], out=tmp_path)
    assert list(whole.checkpoints) == [0, 4, 9]
    for path in whole.checkpoints.values():
        assert same(train(continue_from=path).network, whole.network)


def test_a_stateful_estimator_learns_while_it_trains() -> None:
    still = fga.train(NETWORK, DATA, fga.estimators.ForwardDirectFeedback(rate=1e-12), epochs=2, batch_size=20)
    moving = fga.train(NETWORK, DATA, fga.estimators.ForwardDirectFeedback(rate=0.1), epochs=2, batch_size=20)
    # Feedback starts at zero: without learning, AdamW gives the hidden weights nothing but rounding to follow.
    assert not same(still.network, moving.network)


def test_the_network_given_is_not_changed_and_training_lowers_the_loss() -> None:
    before = [parameter.clone() for parameter in NETWORK.parameters()]
    adam = partial(torch.optim.Adam, lr=1e-2)
    run = fga.train(NETWORK, DATA, epochs=20, batch_size=20, optimizer=adam, log_every=10)
    assert all(torch.equal(a, b) for a, b in zip(before, NETWORK.parameters(), strict=True))
    assert float(run.log["loss"][-1]) < 0.5 * float(run.log["loss"][0])
    assert run.log["step"].values.tolist() == list(range(0, 61, 10))
    assert all(run.log[name].attrs["units"] for name in run.log.data_vars)


def test_training_does_not_touch_the_global_generators() -> None:
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    fga.train(NETWORK, DATA, "upstream", epochs=1, batch_size=30)
    torch.testing.assert_close(torch.random.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_the_log_says_how_good_the_step_was() -> None:
    run = fga.train(NETWORK, DATA, "activity", epochs=4, batch_size=60, n_guesses=64, log_every=1)
    cosines = run.log["cosine"].values[:-1]
    assert (np.abs(cosines) <= 1).all() and cosines.mean() > 0.2
    assert (run.log["relative_error"].values[:-1] > 0).all()


@pytest.mark.parametrize("log_every", [2, 100])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_diverging_run_stops_and_keeps_what_it_has(
    gradient: str, log_every: int, capsys: pytest.CaptureFixture[str]
) -> None:
    sgd = partial(torch.optim.SGD, lr=1e30)
    run = fga.train(NETWORK, DATA, gradient, epochs=20, batch_size=20, optimizer=sgd, log_every=log_every)
    assert "diverged by step" in capsys.readouterr().out
    assert run.log.sizes["step"] >= 1 and 0 < run.log.attrs["diverged_at_step"] < 30


def test_a_run_that_diverges_in_its_last_step_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    sgd = partial(torch.optim.SGD, lr=1e38)
    run = fga.train(NETWORK, DATA, "activity", epochs=1, batch_size=60, optimizer=sgd)
    assert "diverged by step 1" in capsys.readouterr().out and run.log.attrs["diverged_at_step"] == 1
    assert "diverged_at_step" not in fga.train(NETWORK, DATA, "activity", epochs=1).log.attrs


@pytest.mark.parametrize(
    "schedule",
    [
        partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[2, 4], gamma=0.1),
        partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=6),
        partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0),
    ],
)
def test_a_schedule_goes_on_from_a_checkpoint(schedule: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 20, "schedule": schedule}
    settings["optimizer"] = partial(torch.optim.SGD, lr=0.5)
    whole = fga.train(NETWORK, DATA, "activity", checkpoints=[1], out=tmp_path, **settings)
    assert same(
        fga.train(NETWORK, DATA, "activity", continue_from=whole.checkpoints[1], **settings).network, whole.network
    )


def test_several_seeds_are_several_runs(tmp_path: Path) -> None:
    def network(seed: int) -> torch.nn.Module:
        return fga.networks.mlp([6, 8, 3], seed=seed)

    log, runs = fga.train_seeds(network, DATA, "activity", seeds=[3, 5], epochs=1, checkpoints=[0], out=tmp_path)
    assert log["loss"].dims == ("seed", "step") and log["seed"].values.tolist() == [3, 5]
    alone = fga.train(network(5), DATA, "activity", epochs=1, seed=5)
    assert same(alone.network, runs[5].network) and not same(runs[3].network, runs[5].network)
    np.testing.assert_array_equal(log["loss"].sel(seed=5), alone.log["loss"])
    assert runs[3].checkpoints[0] != runs[5].checkpoints[0]
    with pytest.raises(ValueError, match="seeds must be different"):
        fga.train_seeds(network, DATA, seeds=[1, 1])


def test_the_batch_is_512_examples_or_all_there_are(tmp_path: Path) -> None:
    assert int(fga.train(NETWORK, DATA, epochs=2).log["step"][-1]) == 2
    many = Dataset(DATA.train_inputs.repeat(10, 1), DATA.train_targets.repeat(10), DATA.test_inputs, DATA.test_targets)
    assert int(fga.train(NETWORK, many, epochs=2).log["step"][-1]) == 4
