"""Row sketch: the weight gradient from a few random mixtures of the rows of a layer's inputs, kept in their place.

    Ĝ = (1/r) gᵀ Z Zᵀ X,   Z (row, probe) with r columns of unit-variance noise; only Zᵀ X (probe, input) is kept

Rows are examples and positions; gradients at the activations stay exact, as the backward pass to the layer below needs
no inputs. Random: Z, drawn anew for each layer. Unbiased, as E Z Zᵀ = r I. Total variance of one layer, independent
entries of fourth moment κ, K = X Xᵀ:  (1/r)[tr K ‖g‖² + ‖G‖² + (κ − 3) ∑_r K_rr ‖g_r‖²].

    within "batch"      one sketch of the rows of all examples; r numbers for each input are kept
    within "example"    Ĝ = (1/r) ∑_e g_eᵀ Z Zᵀ X_e: the positions of each example are sketched apart, with the same
                        probes, so that examples do not mix; r numbers for each example and input are kept
    mode "dense"        all input channels share the probes
    mode "per_channel"  every input channel has r probes of its own, so that Zᵀg is made for each; the errors of two
                        channels are then uncorrelated, and the total variance is the same

XConv has ``within="example"``, and sketches a convolution's input instead of its patches: it keeps one number for each
example and probe, which all channels and places of the kernel share. Sources: docs/mathematics.md#row-sketch; Louboutin
et al. 2021 (XConv). Biases and layers that are no matrix stay exact (`fganalysis.estimators.sketches.layers`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fganalysis.arguments import check_choice, check_whole
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.noise import GAUSSIAN, Noise, check_noise, drawn
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.sketches.factored import FactoredEstimates, Product, WrittenOut
from fganalysis.estimators.sketches.layers import Rows, SketchedLayer, sketched, summed

Channels = Literal["dense", "per_channel"]
Within = Literal["batch", "example"]


@dataclass(frozen=True)
class RowSketch:
    """Ĝ = (1/r) gᵀ Z Zᵀ X with r = ``probes``; ``noise`` is the law of a probe's entries, over the rows.

    Raises ValueError for a wrong setting; at a call, for ``within="example"`` where examples have different numbers of
    rows.
    """

    probes: int = 1
    noise: Noise = GAUSSIAN
    mode: Channels = "dense"
    within: Within = "batch"

    def __post_init__(self) -> None:
        check_whole("probes", self.probes)
        check_noise(self.noise)
        check_choice("mode", self.mode, get_args(Channels))
        check_choice("within", self.within, get_args(Within))

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> FactoredEstimates:
        def guess(layer: SketchedLayer) -> Product | WrittenOut:
            if self.mode == "dense":
                return summed([self._dense(rows, n_guesses, generator) for rows in layer.taps])
            by_tap = [self._per_channel(rows, layer.places, n_guesses, generator) for rows in layer.taps]
            return WrittenOut(sum(by_tap[1:], by_tap[0]))

        return sketched(snapshot, n_guesses, guess, self._n_random)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        """The backward pass counts whole, although its product with the inputs is smaller."""
        return Passes(forward=1, backward=1, beside=("sketches of every layer's inputs and gradients",))

    def _dense(self, rows: Rows, n_guesses: int, generator: torch.Generator) -> Product:
        g, x = self._parts(rows)
        probes = drawn(self.noise, (n_guesses, int(self.probes), g.shape[1]), generator, g)
        left, right = (torch.einsum("nrp,epu->nreu", probes, part).flatten(1, 2) for part in (g, x))
        return Product(left / self.probes, right)

    def _per_channel(self, rows: Rows, places: int, n_guesses: int, generator: torch.Generator) -> Tensor:
        """(guess, unit, input)."""
        g, x = self._parts(rows)
        x = x.unflatten(2, (-1, places))
        shape = (n_guesses, x.shape[2], int(self.probes), g.shape[1])
        probes = drawn(self.noise, shape, generator, g)
        left = torch.einsum("ncrp,epu->ncreu", probes, g) / self.probes
        right = torch.einsum("ncrp,epci->ncrei", probes, x)
        return torch.einsum("ncreu,ncrei->nuci", left, right).flatten(2)

    def _parts(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Gradients and inputs of what is sketched together, (example, row, unit) and (example, row, input).

        Rows of no single example are sketched together whatever is asked for.
        """
        owners = rows.owners
        if self.within == "batch" or owners is None:
            return rows.gradients.unsqueeze(0), rows.inputs.unsqueeze(0)
        if owners.rows_each * owners.n_examples != owners.n_rows:
            raise ValueError(
                "within='example' sketches the positions of every example with the same probes, but examples have "
                "different numbers of rows at a tap: use within='batch'"
            )
        return owners.by_example(rows.gradients), owners.by_example(rows.inputs)

    def _n_random(self, layer: SketchedLayer) -> int:
        channels = layer.n_inputs // layer.places if self.mode == "per_channel" else 1
        return channels * int(self.probes) * max(len(rows.gradients) for rows in layer.taps)
