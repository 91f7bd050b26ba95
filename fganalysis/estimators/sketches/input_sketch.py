"""Input sketch, or randomised automatic differentiation: a layer's inputs are projected on a few random directions.

    Ĝ = (1/k) ∑_r g_r x_rᵀ S Sᵀ = (1/k) G S Sᵀ,   S (input, column) with k columns of unit-variance noise; X S is kept

With ``shared=False`` every row has its own S_r: Ĝ = (1/k) ∑_r g_r x_rᵀ S_r S_rᵀ. Random: S, for each layer. Unbiased,
as E S Sᵀ = k I. Total variance of a layer of d inputs with fourth moment κ: (d + κ − 2)‖G‖²/k when shared, which is
(d − 1)‖G‖²/k for signs; ∑_r ‖g_r‖²‖x_r‖² in the place of ‖G‖² when not. With ``noise=SampledEntry()`` the columns are
axes, so that k of the d inputs are kept, drawn with replacement: the total variance is that of signs.

With Gaussian noise, shared, this is also the law of FLORA, which projects the gradient in place of the inputs.
Sources: docs/mathematics.md#input-sketch; Oktay et al. 2020; Hao et al. 2024 (FLORA). Biases and layers that are no
matrix stay exact (`fganalysis.estimators.sketches.layers`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fganalysis.arguments import check_flag, check_whole
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.factored import FactoredEstimates, Product, WrittenOut, summed
from fganalysis.estimators.noise import RADEMACHER, Noise, check_noise, drawn
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.sketches.layers import SketchedLayer, sketched


@dataclass(frozen=True)
class InputSketch:
    """Ĝ = (1/k) G S Sᵀ with k = ``columns``; ``noise`` is the law of a column of S, over the inputs of a layer.

    ``shared``: one S for all rows, or one for each row. Raises ValueError for a wrong setting.
    """

    columns: int = 1
    noise: Noise = RADEMACHER
    shared: bool = True

    def __post_init__(self) -> None:
        check_whole("columns", self.columns)
        check_noise(self.noise)
        check_flag("shared", self.shared)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> FactoredEstimates:
        columns = int(self.columns)

        def shared(layer: SketchedLayer) -> Product | WrittenOut:
            gradient = layer.of_weights
            s = drawn(self.noise, (n_guesses, columns, layer.n_inputs), generator, gradient)
            return summed([Product(s @ gradient.T / columns, s)])

        def by_row(layer: SketchedLayer) -> WrittenOut:
            guesses = []
            for rows in layer.taps:
                x = rows.inputs
                s = drawn(self.noise, (n_guesses, len(x), columns, layer.n_inputs), generator, x)
                kept = torch.einsum("nrki,ri->nrk", s, x)
                guesses.append(rows.gradients.T @ torch.einsum("nrk,nrki->nri", kept, s) / columns)
            return WrittenOut(sum(guesses[1:], guesses[0]))

        return sketched(snapshot, n_guesses, shared if self.shared else by_row, self._n_random)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        """The backward pass counts whole, although its product with the inputs is smaller."""
        return Passes(forward=1, backward=1, beside=("sketches of every layer's inputs",))

    def _n_random(self, layer: SketchedLayer) -> int:
        rows = 1 if self.shared else max(len(rows.inputs) for rows in layer.taps)
        return rows * int(self.columns) * layer.n_inputs
