"""A block for which there is no memory is made in parts, of the same guesses, or refused with the way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, Averaged, Estimator, label, resolve
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.measuring.parts_of_blocks import Blocks
from tests.law_claims import rows

GUESSES, BLOCK = 40, 8
SIZES = [6, 16, 16, 12, 4]


class Scarce:
    """An estimator on a device with memory for so many guesses at a time. asked: how many were asked for, in turn."""

    def __init__(self, estimator: Estimator, room: int):
        self.estimator, self.room = estimator, room
        self.asked: list[int] = []

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Any:
        self.asked.append(n_guesses)
        guesses = self.estimator(snapshot, n_guesses, generator)
        if n_guesses > self.room:  # After the noise was drawn, as most of the memory is taken after it.
            raise torch.OutOfMemoryError("no memory")
        return guesses


def snapshot() -> Snapshot:
    network = fga.networks.mlp(SIZES, seed=0, activation=torch.nn.Tanh, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(10, SIZES[0], generator=generator, dtype=torch.float64)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(10) % SIZES[-1])


def made(blocks: Blocks, snapshot: Snapshot) -> torch.Tensor:
    """The guesses of one block, written out."""
    found: list[torch.Tensor] = []

    def keep(guesses: Any, place: int) -> None:
        assert place == sum(map(len, found))
        found.append(guesses.dense(snapshot)[1])

    blocks.each(lambda: torch.Generator().manual_seed(3), keep)
    return torch.cat(found)


# Rows of the batch for all guesses are drawn first, then noise for one guess after the other.
IN_NO_PARTS = fga.estimators.Subsampled
ESTIMATORS = [*map(resolve, fga.estimators.ESTIMATORS), *(row.estimator for row in rows() if "seeded" in row.claims)]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: label(estimator))
def test_parts_are_the_guesses_of_the_whole(estimator: Estimator) -> None:
    there = snapshot()
    whole, scarce = made(Blocks(estimator, there, BLOCK), there), Scarce(estimator, 2)
    if isinstance(estimator, IN_NO_PARTS) and not isinstance(estimator.estimator, fga.estimators.Backpropagation):
        with pytest.raises(ValueError, match="cannot be made in parts"):
            made(Blocks(scarce, there, BLOCK), there)
        return
    parts = made(Blocks(scarce, there, BLOCK), there)
    assert max(scarce.asked[2:]) < BLOCK
    torch.testing.assert_close(parts, whole, rtol=1e-7, atol=1e-8 * float(whole.abs().max()))


def one_by_one(network: Any, loss_fn: Any, inputs: Any, targets: Any, generator: torch.Generator) -> Any:
    return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in network.named_parameters()}


def test_a_function_that_draws_guess_after_guess_goes_on_with_its_generator() -> None:
    there, estimator = snapshot(), fga.estimators.from_function(one_by_one)
    whole = made(Blocks(estimator, there, BLOCK), there)
    parts = made(Blocks(Scarce(estimator, 3), there, BLOCK), there)
    assert torch.equal(parts, whole)


@pytest.mark.parametrize("room", [2, 4])
def test_a_sample_does_not_depend_on_it(room: int) -> None:
    there, estimator = snapshot(), Averaged(ActivityPerturbation(), 2)
    scarce = Scarce(estimator, room)
    plenty = Scarce(estimator, BLOCK)  # Of the same name, as that is part of the seed.
    found, expected = (fga.sample(there, e, GUESSES - 3, block_size=BLOCK, workers=1) for e in (scarce, plenty))
    assert scarce.asked.count(BLOCK) == 2  # Once it has run out, and again with all memory that was in reserve.
    for name in ("inner_product", "squared_norm", "bias", "variance", "gram"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-7, atol=1e-8 * float(expected[name].max()))


@dataclass(frozen=True)
class Mixed:
    """A guess that depends on all guesses of its call."""

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        noise = [torch.randn(n_guesses, *t.outputs.shape, generator=generator).double() for t in snapshot.taps]
        return ActivationEstimates(tuple(part - part.mean(0) / 2 for part in noise))


def test_what_cannot_be_made_in_parts_is_refused_with_the_way_out() -> None:
    words = "cpu has no memory for a block of 8 guesses of Scarce.*cannot be made in parts.*use block_size=4 or less"
    with pytest.raises(ValueError, match=words):
        fga.sample(snapshot(), Scarce(Mixed(), 2), GUESSES, block_size=BLOCK)
    with pytest.raises(ValueError, match="cpu has no memory left for a single guess of Scarce: free memory there"):
        made(Blocks(Scarce(ActivityPerturbation(), 0), snapshot(), 1), snapshot())


def seeded_by_hand(network: Any, loss_fn: Any, inputs: Any, targets: Any, generator: torch.Generator) -> Any:
    own = torch.Generator().manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
    return {n: torch.randn(p.shape, generator=own, dtype=p.dtype) for n, p in network.named_parameters()}


def test_a_generator_made_from_a_number_of_the_other_goes_on_too() -> None:
    there, estimator = snapshot(), fga.estimators.from_function(seeded_by_hand)
    whole = made(Blocks(estimator, there, BLOCK), there)
    assert torch.equal(made(Blocks(Scarce(estimator, 3), there, BLOCK), there), whole)
