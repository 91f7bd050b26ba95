"""Heads of local losses: their laws, how they are drawn, and their training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fganalysis as fga
from fganalysis.estimators import ActivityPerturbation, LocalLoss, label, train_heads
from fganalysis.estimators.adam import AdamState
from fganalysis.estimators.local import heads
from tests import laws
from tests.unit.estimators.local_losses import KINDS, SNAPSHOT, generator, guesses, heads_of, module_of, small

TABLE = [
    LocalLoss(),
    LocalLoss(space="weight"),
    LocalLoss(mode="redrawn"),
    LocalLoss(mode="redrawn", space="weight", target="local"),
    small("mlp", mode="redrawn"),
    small("cnn"),
]


@pytest.mark.parametrize("estimator", TABLE, ids=label)
def test_the_named_laws(estimator: LocalLoss) -> None:
    laws.assert_seeded(estimator, SNAPSHOT)
    laws.assert_equivariant_under_loss_scaling(estimator, SNAPSHOT)
    forward = laws.tiny_snapshot((5, 16, 17, 3), n_examples=7, bias=True, autodiff="forward")
    laws.assert_modes_agree(estimator, SNAPSHOT, forward)
    assert all(guess.grad_fn is None for guess in laws.guesses_of(estimator, forward))


@pytest.mark.parametrize("kind", KINDS)
def test_redrawn_heads_differ_between_guesses_and_large_ones_come_in_parts(
    kind: heads.Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = guesses(small(kind, mode="redrawn"), n_guesses=5)
    assert not torch.allclose(several[0][0], several[0][1], rtol=0.05)
    frozen = guesses(small(kind), n_guesses=2)
    torch.testing.assert_close(frozen[0][0], frozen[0][1], rtol=0, atol=0)
    monkeypatch.setattr(heads, "NUMBERS_AT_ONCE", 1)  # one head at a time
    parts = guesses(small(kind, mode="redrawn"), n_guesses=5)
    assert [part.shape for part in parts] == [whole.shape for whole in several]
    first = guesses(small(kind, mode="redrawn"), n_guesses=1)
    torch.testing.assert_close(parts[0][0], first[0][0], rtol=1e-9, atol=1e-15)


def test_weights_of_a_head_are_uniform_on_one_over_the_root_of_the_fan_in() -> None:
    shapes = heads.shapes_of("cnn", 40, 10, 8, "0")
    assert shapes == ((8, 1, 3), (8,), (8, 8, 3), (8,), (8, 8, 3), (8,), (10, 8), (10,))
    assert heads.shapes_of("mlp", 40, 10, None, "0")[2] == (1024, 1024)
    drawn = heads.drawn(shapes, 50, generator(), torch.zeros(0))
    for tensor, fan_in in zip(drawn, (3, 3, 24, 24, 24, 24, 8, 8), strict=True):
        assert 0.9 * fan_in**-0.5 < float(tensor.abs().max()) <= fan_in**-0.5
        assert abs(float(tensor.mean())) < 0.2 * fan_in**-0.5


def test_seeds_give_different_heads_and_precision_does_not() -> None:
    assert not torch.allclose(guesses(LocalLoss(seed=1))[0], guesses(LocalLoss())[0], rtol=0.05)
    single = fga.capture(
        fga.networks.mlp([5, 16, 17, 3]), torch.nn.functional.cross_entropy, torch.eye(5), torch.tensor([0, 1, 2, 0, 1])
    )
    (low, *_), (high, *_) = heads_of(LocalLoss(), single), heads_of(LocalLoss())
    torch.testing.assert_close(low[0], high[0].float(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("space", ["activation", "weight"])
def test_a_dead_head_guesses_zero(space: Any) -> None:
    dead = LocalLoss(mode="trained", space=space).initialised(SNAPSHOT)
    assert dead.optimiser is not None
    dead = replace(dead, optimiser=AdamState.at([torch.zeros_like(tensor) for tensor in dead.optimiser.values]))
    assert all(torch.equal(guess, torch.zeros_like(guess)) for guess in guesses(dead)[:-1])


def test_a_network_without_a_hidden_tap_is_guessed_exactly() -> None:
    single = laws.tiny_snapshot((3, 2))
    for estimator in (LocalLoss(), LocalLoss(mode="redrawn", target="local")):
        torch.testing.assert_close(guesses(estimator, single)[0][0], single.gradients[0])


@pytest.mark.parametrize("kind", KINDS)
def test_training_a_head_is_adam_on_its_loss(kind: heads.Kind) -> None:
    estimator = small(kind, mode="trained", rate=0.01)
    modules = [module_of(kind, head) for head in heads_of(estimator)]
    for index, module in enumerate(modules):
        adam = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(3):
            adam.zero_grad()
            block = torch.tanh(SNAPSHOT.taps[index].outputs)
            torch.nn.functional.cross_entropy(module(block), SNAPSHOT.targets).backward()
            adam.step()
    trained = train_heads(estimator, SNAPSHOT, 3)
    for module, head in zip(modules, heads_of(trained), strict=True):
        for parameter, tensor in zip(module.parameters(), head, strict=True):
            torch.testing.assert_close(tensor, parameter.detach(), rtol=1e-7, atol=1e-10)
    before = estimator.initialised(SNAPSHOT).head_losses(SNAPSHOT)
    assert bool((trained.head_losses(SNAPSHOT) < before).all())


def test_the_state_survives_a_file_and_goes_on_as_if_never_written(tmp_path: Path) -> None:
    state = small("mlp", mode="trained").initialised(SNAPSHOT).advanced(SNAPSHOT, generator())
    save_file(state.state(), tmp_path / "state.safetensors")
    restored = small("mlp", mode="trained").with_state(load_file(tmp_path / "state.safetensors"))
    (one, *_), (other, *_) = (guesses(each.advanced(SNAPSHOT, generator())) for each in (state, restored))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert LocalLoss().state() == {} and LocalLoss().with_state({}).optimiser is None


@pytest.mark.parametrize("target", ["global", "local"])
def test_a_guess_and_the_heads_own_step_share_their_passes(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward and backward pass a head for both; a state or a batch of its own has passes of its own."""
    passes: list[Tensor] = []
    both_gradients = heads.both_gradients

    def counted(head: heads.Parameters, block: Tensor, *of: Any) -> tuple[Tensor, heads.Parameters]:
        passes.append(block)
        return both_gradients(head, block, *of)

    monkeypatch.setattr(heads, "both_gradients", counted)
    estimator = small("mlp", mode="trained", target=target, rate=0.1).initialised(SNAPSHOT)
    snapshot = laws.tiny_snapshot((5, 16, 17, 3), n_examples=7, bias=True, seed=1)
    guesses(estimator, snapshot)
    moved = estimator.advanced(snapshot, generator())
    assert len(passes) == 2
    guesses(moved, snapshot)
    assert len(passes) == 4
    alone = estimator.advanced(laws.tiny_snapshot((5, 16, 17, 3), n_examples=7, bias=True, seed=1), generator())
    assert len(passes) == 6
    for name, tensor in moved.state().items():
        torch.testing.assert_close(tensor, alone.state()[name], rtol=0, atol=0)


def test_only_heads_that_are_asked_for_are_trained() -> None:
    for idle in (LocalLoss(), LocalLoss(mode="redrawn")):
        assert idle.advanced(SNAPSHOT, generator()) is idle
    for learning in (LocalLoss(mode="trained"), LocalLoss(target="local")):
        assert learning.advanced(SNAPSHOT, generator()).optimiser is not None


def test_trained_heads_guess_better_than_random_directions() -> None:
    """The paper's claim, on a network of a useful size: mean cosines .2 apart at the least."""
    network = fga.networks.mlp([20, 32, 32, 4], seed=1)
    inputs = torch.randn(64, 20, generator=generator())
    targets = inputs[:, :4].argmax(1)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets)
    estimator = train_heads(LocalLoss(mode="trained", rate=0.01), snapshot, 200)

    def cosine(one: Any) -> float:
        measured = fga.sample(snapshot, one, n_guesses=64, block_size=8)
        return float(measured["cosine"].sel(space="activation", layer="0"))

    assert cosine(estimator) > cosine(ActivityPerturbation()) + 0.2
