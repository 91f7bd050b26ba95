"""Local losses: the head's gradient against autograd, the projection against its definition, training, refusals."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, LocalLoss, label, train_heads
from fganalysis.estimators.adam import AdamState
from fganalysis.estimators.local import heads
from fganalysis.testing import exact_moments
from tests import laws
from theory import local_loss as theory
from theory import quantities
from theory.feedback import deterministic

SNAPSHOT = laws.tiny_snapshot((5, 16, 17, 3), n_examples=7, bias=True)
KINDS: list[heads.Kind] = ["linear", "mlp", "cnn"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def guesses(estimator: LocalLoss, snapshot: Snapshot = SNAPSHOT, n_guesses: int = 1) -> tuple[Tensor, ...]:
    return estimator(snapshot, n_guesses, generator()).guesses


def small(kind: heads.Kind, **settings: Any) -> LocalLoss:
    return LocalLoss(kind, width=None if kind == "linear" else 16, **settings)


def module_of(kind: heads.Kind, head: tuple[Tensor, ...]) -> torch.nn.Module:
    """The same head as torch modules: the independent route."""
    layers: list[torch.nn.Module] = [torch.nn.Unflatten(1, (1, -1))] if kind == "cnn" else []
    for weight, bias in zip(head[::2], head[1::2], strict=True):
        module: torch.nn.Module
        if weight.ndim == 3:
            module = torch.nn.Conv1d(weight.shape[1], weight.shape[0], 3, stride=2, dtype=torch.float64)
        else:
            module = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        module.load_state_dict({"weight": weight, "bias": bias})
        layers += [module, torch.nn.ReLU()]
    layers.pop()
    if kind == "cnn":
        layers[-1:] = [torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), layers[-1]]
    return torch.nn.Sequential(*layers)


def reference_direction(kind: heads.Kind, head: tuple[Tensor, ...], index: int) -> Tensor:
    """v by autograd from the tap's output on, (example, unit)."""
    outputs = SNAPSHOT.taps[index].outputs.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(module_of(kind, head)(torch.tanh(outputs)), SNAPSHOT.targets)
    return torch.autograd.grad(loss, outputs)[0]


def heads_of(estimator: LocalLoss, snapshot: Snapshot = SNAPSHOT) -> list[tuple[Tensor, ...]]:
    optimiser = (estimator if estimator.optimiser else estimator.initialised(snapshot)).optimiser
    assert optimiser is not None
    half = len(optimiser.values) // 2
    return [optimiser.values[:half], optimiser.values[half:]]


# Exact


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", [False, True])
def test_the_guess_is_the_projection_on_the_heads_gradient(kind: heads.Kind, trained: bool) -> None:
    estimator = small(kind, mode="trained" if trained else "frozen", rate=0.02)
    if trained:
        estimator = train_heads(estimator, SNAPSHOT, 5)
    for space in ("activation", "weight"):
        chosen = replace(estimator, space=space)
        found = guesses(chosen)
        for index, head in enumerate(heads_of(estimator)):
            v, target = reference_direction(kind, head, index), SNAPSHOT.gradients[index]
            if space == "activation":
                coefficient = (target * v).sum(1, keepdim=True) / v.square().sum(1, keepdim=True)
            else:
                inputs = SNAPSHOT.taps[index].inputs
                of_weights, exact = v.T @ inputs, target.T @ inputs
                coefficient = (exact * of_weights).sum() / of_weights.square().sum()
            torch.testing.assert_close(found[index][0], coefficient * v, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(found[-1][0], SNAPSHOT.gradients[-1], rtol=0, atol=0)
    assert not torch.allclose(found[0], guesses(estimator)[0], rtol=1e-2)  # the two spaces differ


@pytest.mark.parametrize("space", ["activation", "weight"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_its_own_gradient_for_a_target_a_head_guesses_that_gradient(kind: heads.Kind, space: Any) -> None:
    estimator = small(kind, target="local", space=space)
    for index, head in enumerate(heads_of(estimator)):
        torch.testing.assert_close(
            guesses(estimator)[index][0], reference_direction(kind, head, index), rtol=1e-9, atol=1e-14
        )


def test_a_local_target_is_the_trained_heads_and_the_guess_the_frozen_ones() -> None:
    """The cell of the paper's matrix in which the two heads differ."""
    estimator = train_heads(LocalLoss(target="local", rate=0.1), SNAPSHOT, 20)
    frozen = heads_of(LocalLoss())
    for index, head in enumerate(heads_of(estimator)):
        v, target = reference_direction("linear", frozen[index], index), reference_direction("linear", head, index)
        coefficient = (target * v).sum(1, keepdim=True) / v.square().sum(1, keepdim=True)
        torch.testing.assert_close(guesses(estimator)[index][0], coefficient * v, rtol=1e-9, atol=1e-14)
        assert not torch.allclose(coefficient * v, target, rtol=0.05)


def test_the_networks_own_last_layer_as_a_head_is_backpropagation() -> None:
    snapshot = laws.tiny_snapshot((5, 4, 3), n_examples=6, bias=True)
    last = snapshot.taps[-1].weight
    own = LocalLoss(mode="trained", optimiser=AdamState.at([last[:, :-1], last[:, -1]]))
    torch.testing.assert_close(guesses(own, snapshot)[0][0], snapshot.gradients[0], rtol=1e-9, atol=1e-14)
    scaled = LocalLoss(mode="trained", optimiser=AdamState.at([1.5 * last[:, :-1], last[:, -1]]))
    assert not torch.allclose(guesses(scaled, snapshot)[0][0], snapshot.gradients[0], rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["activation", "weight"])
def test_of_all_multiples_the_guess_is_the_nearest(kind: heads.Kind, space: Any) -> None:
    """Best scale 1, for frozen heads and for redrawn ones, in the space of the projection."""
    for mode in ("frozen", "redrawn"):
        block = small(kind, mode=mode, space=space)(SNAPSHOT, 3, generator())
        inner, squares = block.inner_products(SNAPSHOT)
        row = ["activation", "weight"].index(space)
        torch.testing.assert_close(inner[row], squares[row], rtol=1e-9, atol=1e-15)
        if space == "activation":
            for guess, exact in zip(block.guesses, SNAPSHOT.gradients, strict=True):
                torch.testing.assert_close((guess * exact).sum(-1), guess.square().sum(-1), rtol=1e-8, atol=1e-16)


@pytest.mark.parametrize("space", ["activation", "weight"])
def test_theory_predicts_a_linear_heads_guess(space: Any) -> None:
    estimator = train_heads(LocalLoss(mode="trained", space=space, rate=0.05), SNAPSHOT, 3)
    means, kernels = [], [tap.kernel.numpy() for tap in SNAPSHOT.taps]
    gradients = [gradient.numpy() for gradient in SNAPSHOT.gradients]
    for index, (weight, bias) in enumerate(heads_of(estimator)):
        derivative = SNAPSHOT.upstream[index].derivative.numpy()
        block = np.tanh(SNAPSHOT.taps[index].outputs.numpy())
        targets = SNAPSHOT.targets.numpy()
        v = theory.linear_head_gradient(block, derivative, weight.numpy(), bias.numpy(), targets)
        means.append(theory.projected(gradients[index], v, kernels[index] if space == "weight" else None))
    means.append(gradients[-1])
    for found, expected in zip(guesses(estimator), means, strict=True):
        np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-9, atol=1e-15)
    moments = [deterministic(mean) for mean in means]
    predicted = quantities.quantities(
        gradients, means, [m.second_moment(k) for m, k in zip(moments, kernels, strict=True)], kernels
    )
    measured = fga.sample(SNAPSHOT, estimator, n_guesses=64, block_size=8).sel(space="weight")
    for name in ("relative_bias", "shrinkage", "efficiency", "best_scale"):
        np.testing.assert_allclose(measured[name], predicted[name], rtol=1e-6, atol=1e-9)
    exact = exact_moments(estimator, SNAPSHOT)
    torch.testing.assert_close(exact.weight_covariance, torch.zeros_like(exact.weight_covariance), rtol=0, atol=1e-15)


def test_the_error_of_a_projection_is_that_of_its_angle() -> None:
    rng = np.random.default_rng(0)
    target, v, inputs = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    v[1] = 0.0
    guess = theory.projected(target, v)
    assert not guess[1].any()
    cosine = np.sum(target[0] * v[0]) / np.linalg.norm(target[0]) / np.linalg.norm(v[0])
    assert np.sum((guess - target)[0] ** 2) == pytest.approx((1 - cosine**2) * np.sum(target[0] ** 2))
    of_weights, exact = v.T @ inputs, target.T @ inputs
    expected = np.sum(of_weights * exact) / np.sum(of_weights**2) * of_weights
    np.testing.assert_allclose(theory.projected(target, v, inputs @ inputs.T).T @ inputs, expected)
    with pytest.raises(ValueError, match="target and direction must have the same shape"):
        theory.projected(target, v[:2])
    with pytest.raises(ValueError, match="targets must be class indices from 0 to 2"):
        theory.cross_entropy_error(target, np.array([0, 1, 2, 3]))


# As an estimator

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


# Trained heads


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


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "tree"}, "head must be 'linear' or 'mlp' or 'cnn', got 'tree'"),
        ({"target": "both"}, "target must be 'global' or 'local', got 'both'"),
        ({"space": "input"}, "space must be 'activation' or 'weight', got 'input'"),
        ({"mode": "thawed"}, "mode must be 'frozen' or 'trained' or 'redrawn', got 'thawed'"),
        ({"rate": 0.0}, "rate must be a finite number above 0, got 0.0"),
    ],
)
def test_unknown_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalLoss(**settings)


def test_a_head_that_does_not_fit_is_refused_in_one_sentence() -> None:
    narrow = laws.tiny_snapshot((5, 16, 14, 3), n_examples=7)
    with pytest.raises(ValueError, match="a cnn head needs at least 15 units, the block of tap '2' has 14"):
        guesses(LocalLoss("cnn"), narrow)
    other = train_heads(LocalLoss(mode="trained"), SNAPSHOT, 1)
    with pytest.raises(ValueError, match=r"the head does not fit the block of tap '2': it needs \(\(3, 14\), \(3,\)\)"):
        guesses(other, narrow)
    with pytest.raises(ValueError, match="mode 'trained' needs trained heads: use train_heads"):
        guesses(LocalLoss(mode="trained"))
    with pytest.raises(ValueError, match="n_steps must be a whole number of at least 1, got 0"):
        train_heads(LocalLoss(), SNAPSHOT, 0)


@pytest.mark.parametrize(("index", "bad"), [(3, 3), (-1, -1)])
def test_targets_out_of_range_are_refused_in_one_sentence(index: int, bad: int) -> None:
    targets = SNAPSHOT.targets.clone()
    targets[2] = index
    wrong = replace(SNAPSHOT, targets=targets)
    for call in (lambda: guesses(LocalLoss(), wrong), lambda: train_heads(LocalLoss(), wrong, 1)):
        with pytest.raises(ValueError, match=f"targets must be class indices from 0 to 2, got {bad}"):
            call()


@pytest.mark.parametrize("mode", ["frozen", "redrawn", "trained"])
def test_guesses_in_inference_mode_are_those_outside(mode: Any) -> None:
    estimator = small("mlp", mode=mode)
    known = train_heads(estimator, SNAPSHOT, 1) if mode == "trained" else estimator
    outside = guesses(known)
    other = laws.tiny_snapshot((5, 16, 17, 3), n_examples=7, bias=True)
    assert other.gradients  # An exact gradient needs what inference mode takes away, and is made before.
    with torch.inference_mode():
        inside = guesses(replace(known), other)
    for one, two in zip(outside, inside, strict=True):
        assert torch.equal(one, two.clone())


def test_what_an_estimator_keeps_for_later_is_in_no_copy_and_no_pickle() -> None:
    estimator = LocalLoss("mlp", target="local", seed=3)
    before = pickle.dumps(estimator)
    expected = guesses(estimator)
    assert pickle.dumps(estimator) == before and len(before) < 1000
    for copied in (pickle.loads(before), copy.deepcopy(estimator)):
        assert (copied.head, copied.target, copied.seed) == ("mlp", "local", 3)
        assert all(map(torch.equal, guesses(copied), expected))


def test_threads_may_guess_on_networks_of_different_shapes_with_one_estimator() -> None:
    """The blocks met last are then another thread's as often as not: asked for twice, heads could be gone between."""
    estimator = small("linear")

    class Fickle(dict[Any, Any]):
        """Forgets a key as soon as it said that it has it, as if another thread had cleared it."""

        def __contains__(self, key: object) -> bool:
            found = super().__contains__(key)
            self.clear()
            return found

    first = estimator.own_heads(SNAPSHOT, False)
    estimator.__dict__["_seeded"] = Fickle(estimator._seeded)
    for one, other in zip(estimator.own_heads(SNAPSHOT, False), first, strict=True):
        assert all(map(torch.equal, one, other))
