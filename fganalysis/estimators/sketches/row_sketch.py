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

Of a convolution the rows are the places of its input, not its patches, so that r numbers for each channel are kept: the
backward pass takes Z Zᵀ X/r for the input. Each place of the kernel is then a row sketch of its own, with the gradients
shifted, and the variances add up. ``within="example"`` is XConv with its probes shared by channels, or with probes of
each channel. Sources: docs/mathematics.md#row-sketch; Louboutin et al. 2021 (XConv). Biases and layers that are no
matrix stay exact (`fganalysis.estimators.sketches.layers`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fganalysis.arguments import check_choice, check_whole
from fganalysis.capturing.rows import Owners
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.factored import FactoredEstimates, Product, WrittenOut, summed
from fganalysis.estimators.noise import GAUSSIAN, Noise, check_noise, drawn
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.sketches.layers import Rows, SketchedLayer, sketched

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
            if self.mode == "dense" and all(rows.convolution is None for rows in layer.taps):
                return summed([self._factored(rows, n_guesses, generator) for rows in layer.taps])
            by_tap = [self._written_out(rows, n_guesses, generator) for rows in layer.taps]
            return WrittenOut(sum(by_tap[1:], by_tap[0]))

        return sketched(snapshot, n_guesses, guess, self._n_random)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        """The backward pass counts whole, although its product with the inputs is smaller."""
        return Passes(forward=1, backward=1, beside=("sketches of every layer's inputs and gradients",))

    def together(self, rows: Rows) -> Owners | None:
        """The examples whose rows are sketched apart; None where all rows are sketched together.

        Raises:
            ValueError: examples that are to be sketched apart and have different numbers of rows.
        """
        owners = rows.kept_owners()
        if self.within == "batch" or rows.owners is None:
            return None
        if owners is None or owners.rows_each * owners.n_examples != owners.n_rows:
            raise ValueError(
                "within='example' sketches the positions of every example with the same probes, but examples have "
                "different numbers of rows at a tap, or their places are in another order: use within='batch'"
            )
        return owners

    def _factored(self, rows: Rows, n_guesses: int, generator: torch.Generator) -> Product:
        owners = self.together(rows)
        g, x = (part[None] if owners is None else owners.by_example(part) for part in (rows.gradients, rows.inputs))
        probes = drawn(self.noise, (n_guesses, int(self.probes), g.shape[1]), generator, g)
        left, right = (torch.einsum("nrp,epu->nreu", probes, part).flatten(1, 2) for part in (g, x))
        return Product(left / self.probes, right)

    def _written_out(self, rows: Rows, n_guesses: int, generator: torch.Generator) -> Tensor:
        """By what the backward pass takes for the inputs, Z Zᵀ X/r: (guess, unit, input)."""
        owners = self.together(rows)
        x = rows.kept[None] if owners is None else owners.by_example(rows.kept)
        channels = x.shape[2] if self.mode == "per_channel" else 1
        probes = drawn(self.noise, (n_guesses, channels, int(self.probes), x.shape[1]), generator, x)
        if channels == 1:
            taken = torch.einsum("nrp,nreq->nepq", probes[:, 0], torch.einsum("nrp,epq->nreq", probes[:, 0], x))
        else:
            taken = torch.einsum("ncrp,ncre->nepc", probes, torch.einsum("ncrp,epc->ncre", probes, x))
        whole = taken[:, 0] if owners is None else owners.from_examples(taken)
        return rows.with_kept(whole / self.probes)

    def _n_random(self, layer: SketchedLayer) -> int:
        kept = [rows.kept.shape for rows in layer.taps]
        return max(rows * (channels if self.mode == "per_channel" else 1) for rows, channels in kept) * int(self.probes)
