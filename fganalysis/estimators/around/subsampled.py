"""Any estimator on a random part of the batch.

    ĝ = the estimator's guess on m of the B rows, whose loss is the mean over those m;  zero on the other rows

    tr Cov ĝ = E_S tr Cov(ĝ | S)  +  tr Cov E(ĝ | S)        law of total variance
               within, the guess     between, the minibatch

Random: the rows S, drawn anew for every guess, and what the estimator draws. If the mean guess given the rows is the
mean guess of the whole batch restricted to them, as for every linear guess, the bias is that of the estimator alone.
Source: docs/mathematics.md#subsampled-guesses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fganalysis.arguments import check_whole
from fganalysis.capturing.batch import map_tensors
from fganalysis.capturing.rows import Layout, Owners
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Tap
from fganalysis.capturing.upstream import UpstreamJacobian
from fganalysis.estimators.around.averaged import block_of
from fganalysis.estimators.around.wrapped import wrap
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.guesses import ActivationEstimates, Estimates
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.protocol import Stateful
from fganalysis.estimators.sampling_rows.minibatch import (
    WITHOUT_REPLACEMENT,
    Rows,
    check_rows,
    check_size,
    drawn_rows,
    refuse_shared_rows,
)
from fganalysis.estimators.stated_passes import passes_of


@dataclass(frozen=True)
class Subsampled:
    """``estimator``, a key or an instance, on ``size`` rows drawn without replacement for every guess.

    An estimator that learns makes its learning steps on the whole batch.

    Closed form: for guesses at the weights, and for guesses on some rows that equal those rows of a guess on the whole
    batch. There is none where examples share both noise and slope, or where a guess mixes examples in another way
    (activation mixing, local loss in weight space, feedback that is learned within the guess, a nested `Subsampled`).
    `fganalysis.measuring.variance_parts` and `fganalysis.predict_variance_parts` give both parts of the variance.

    Raises:
        ValueError: an unknown key, or a size that is no whole number of at least 1; at a call, a size above B.
    """

    estimator: Any
    size: int
    rows: Rows = WITHOUT_REPLACEMENT

    def __post_init__(self) -> None:
        wrap(self)
        check_whole("size", self.size)
        check_rows(self.rows)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        chosen = self.draw_rows(snapshot, n_guesses, generator)
        parts = [self.guesses_on(snapshot, rows, 1, generator) for rows in chosen]
        return block_of([part.total() for part in parts], parts[0])

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes | None:
        """Those of the estimator on the rows of every guess.

        None for an estimator that learns, as its guess is of some rows and its learning of the whole batch.
        """
        check_size(self.size, snapshot.n_examples)
        part = replace(snapshot, n_examples=int(self.size), _memory={})
        stated = None if isinstance(self.estimator, Stateful) else passes_of(self.estimator, part)
        return None if stated is None else stated.times(n_guesses * self.size / snapshot.n_examples)

    def draw_rows(self, snapshot: Snapshot, n_draws: int, generator: torch.Generator) -> Tensor:
        """Rows of the batch, (draw, row)."""
        return drawn_rows(self.rows, n_draws, snapshot.n_examples, self.size, generator)

    def guesses_on(self, snapshot: Snapshot, rows: Tensor, n_guesses: int, generator: torch.Generator) -> Estimates:
        """Guesses that all use the given rows, written to their places in the whole batch."""
        estimates: Estimates = self.estimator(restricted(snapshot, rows), n_guesses, generator)
        if not isinstance(estimates, ActivationEstimates):
            return estimates
        placed = []
        for tap, guess in zip(snapshot.taps, estimates.guesses, strict=True):
            assert tap.owners is not None
            places, _ = tap.owners.of_examples(rows)
            whole = guess.new_zeros(guess.shape[0], len(tap.outputs), guess.shape[2])
            placed.append(whole.index_copy_(1, places, guess))
        return ActivationEstimates(tuple(placed))


def restricted(snapshot: Snapshot, rows: Tensor) -> Snapshot:
    """The snapshot of the given examples alone, with their mean loss. Only the loss function is evaluated again.

    Raises:
        ValueError: a loss that is no mean over examples, examples that interact, or rows that serve all of them.
    """
    snapshot.check_examples_apart()
    refuse_shared_rows(snapshot)
    if not snapshot.mean_loss:
        raise ValueError(
            "the loss is no mean over examples (of tokens, with ignored ones or weights of classes), so its value on a "
            "part of the batch is another: Subsampled needs one that is"
        )
    outputs, targets = snapshot.outputs[rows], snapshot.targets[rows]
    taps, exact = [], []
    scale = snapshot.n_examples / len(rows)
    for index, tap in enumerate(snapshot.taps):
        assert tap.owners is not None
        places, owners = tap.owners.of_examples(rows)
        taps.append(_rows_of(tap, places, owners))
        if snapshot.exact_gradients is not None:
            # Examples do not interact, so these follow from the whole batch, without a backward pass for every guess.
            exact.append(snapshot.exact_gradients[index][places] * scale)

    def part(tensor: Tensor) -> Tensor:
        return tensor[rows] if tensor.ndim and len(tensor) == snapshot.n_examples else tensor

    return replace(
        snapshot,
        inputs=map_tensors(snapshot.inputs, part),
        targets=targets,
        outputs=outputs,
        loss=snapshot.loss_fn(outputs, targets).detach(),
        n_examples=len(rows),
        taps=tuple(taps),
        exact_gradients=None if snapshot.exact_gradients is None else tuple(exact),
        graph=None,
        _memory={},
    )


def _rows_of(tap: Tap, rows: Tensor, owners: Owners) -> Tap:
    derivative = None if tap.derivative is None else tap.derivative[rows]
    upstream = None
    if tap.upstream is not None and derivative is not None:
        upstream = UpstreamJacobian(tap.upstream.weight, derivative)
    return replace(
        tap,
        outputs=tap.outputs[rows],
        layout=Layout((len(rows), tap.units), (1,)),
        owners=owners,
        weights=tap.weights.of_rows(rows),
        arriving=None if tap.arriving is None else tap.arriving[rows],
        derivative=derivative,
        upstream=upstream,
    )
