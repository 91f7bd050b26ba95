"""What a local loss refuses, and where its guesses may be made."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch

from fganalysis.estimators import LocalLoss, train_heads
from tests import laws
from tests.unit.estimators.local_losses import SNAPSHOT, guesses, small


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
