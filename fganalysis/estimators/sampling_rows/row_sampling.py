"""Row sampling: the weight gradient from some rows of a layer's inputs, drawn with replacement.

    Ĝ = ∑_{r kept} g_r x_rᵀ + (1/c) ∑_{j=1…c} g_r(j) x_r(j)ᵀ/p_r(j),   r(j) ~ p over the rows that are not kept

Rows are examples and positions, of each layer by itself; gradients at the activations stay exact. With ``by="norm"``
p_r ∝ ‖g_r‖‖x_r‖, which has the least variance; with ``by="uniform"`` all rows are alike. The ``keep`` rows of the
largest ‖g_r‖‖x_r‖ are always there, and only the others are sampled (winner takes all). Random: the rows. Unbiased for
any p that does not depend on the draw. Total variance, over the rows that are sampled:
(1/c)[∑_r ‖g_r‖²‖x_r‖²/p_r − ‖∑_r g_r x_rᵀ‖²].

The rows are chosen in the forward pass, before g is known. So WTA-CRS takes the norms ‖g_r‖ of an earlier step, and its
variance is larger; here the norms are those of this step.
Sources: docs/mathematics.md#row-sampling; Liu et al. 2023 (WTA-CRS); Drineas et al. 2006. Biases and layers that are no
matrix stay exact (`fganalysis.estimators.sketches.layers`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from fganalysis.arguments import check_choice, check_kind, check_whole, described
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.factored import FactoredEstimates, Product, WrittenOut, summed
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.sketches.layers import SketchedLayer, sketched

By = Literal["norm", "uniform"]


@runtime_checkable
class Draws(Protocol):
    """How rows are drawn; injectable, so that a test can enumerate every draw."""

    def of(self, probabilities: Tensor, n_guesses: int, count: int, generator: torch.Generator) -> Tensor:
        """Indices of the drawn rows, (guess, draw). probabilities: of each row, in double precision."""


@dataclass(frozen=True)
class WithReplacement:
    """Independent draws."""

    def of(self, probabilities: Tensor, n_guesses: int, count: int, generator: torch.Generator) -> Tensor:
        sums = probabilities.cumsum(0)
        uniform = torch.rand(n_guesses, count, generator=generator, device=generator.device, dtype=torch.float64)
        # Rounding may not lead behind the last row that can be drawn.
        last = torch.where(probabilities > 0, torch.arange(len(probabilities), device=probabilities.device), 0).max()
        return torch.minimum(torch.searchsorted(sums, uniform * sums[-1], right=True), last)


WITH_REPLACEMENT = WithReplacement()


@dataclass(frozen=True)
class RowSampling:
    """``count`` rows of each layer, drawn with replacement ``by`` probability, and ``keep`` rows that are always there.

    Raises ValueError for a wrong setting.
    """

    count: int = 1
    by: By = "norm"
    keep: int = 0
    draws: Draws = WITH_REPLACEMENT

    def __post_init__(self) -> None:
        check_whole("count", self.count)
        check_choice("by", self.by, get_args(By))
        check_whole("keep", self.keep, 0)
        check_kind("draws", self.draws, Draws, "a chooser of rows such as WithReplacement(), with the method of")

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> FactoredEstimates:
        def guess(layer: SketchedLayer) -> Product | WrittenOut:
            g = torch.cat([rows.gradients for rows in layer.taps])
            x = torch.cat([rows.inputs for rows in layer.taps])
            kept, others, probabilities = self.choices(g, x)
            chosen = kept.expand(n_guesses, -1)
            weights = torch.ones_like(chosen, dtype=torch.float64)
            if len(others):
                places = self._drawn(probabilities, n_guesses, generator)
                chosen = torch.cat([chosen, others[places]], dim=1)
                weights = torch.cat([weights, 1 / (self.count * probabilities[places])], dim=1)
            left = (g[chosen].double() * weights[:, :, None]).to(g.dtype)
            return summed([Product(left, x[chosen])])

        return sketched(snapshot, n_guesses, guess, lambda layer: int(self.count))

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        """The backward pass counts whole, although its product with the inputs is smaller."""
        return Passes(forward=1, backward=1, beside=("norms of every layer's rows",))

    def choices(self, gradients: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows that are kept, those that are sampled, and their probabilities in double precision."""
        sizes = torch.linalg.vector_norm(gradients.double(), dim=1) * torch.linalg.vector_norm(inputs.double(), dim=1)
        order = sizes.argsort(descending=True, stable=True)
        kept, others = order[: int(self.keep)], order[int(self.keep) :]
        weights = sizes[others] if self.by == "norm" else torch.ones_like(sizes[others])
        # A gradient of zero has no row to prefer.
        weights = torch.where(weights.sum() > 0, weights, torch.ones_like(weights))
        return kept, others, weights / weights.sum()

    def _drawn(self, probabilities: Tensor, n_guesses: int, generator: torch.Generator) -> Tensor:
        drawn: object = self.draws.of(probabilities, n_guesses, int(self.count), generator)
        shape, rows = (n_guesses, int(self.count)), len(probabilities)
        if isinstance(drawn, Tensor) and type(self.draws) is WithReplacement:
            return drawn
        sound = isinstance(drawn, Tensor) and drawn.dtype == torch.int64 and drawn.shape == shape
        if not isinstance(drawn, Tensor) or not sound or not bool(((drawn >= 0) & (drawn < rows)).all()):
            asked = f"a tensor of shape {shape} and int64, from 0 to {rows - 1}"
            raise ValueError(f"the rows chooser {described(self.draws)} must draw {asked}, got {described(drawn)}")
        return drawn
