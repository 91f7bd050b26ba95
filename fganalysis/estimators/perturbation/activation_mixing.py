"""Activation mixing: each example is perturbed along a random mixture of the whole batch's activations.

    u_l,b = (α X)_b ⊙ 1[X_b > 0] rescaled to norm √n,   α ~ law^{B×B},   X (example, unit) the inputs of tap l+1
    t_b = Σ_l ⟨u_l,b, ∂L/∂X_l,b⟩ + ⟨ε_b, g_last,b⟩,   ĝ_l,b = φ'(s_l,b) ⊙ (t_b u_l,b),   ĝ_last,b = t_b ε_b

The direction is added to the *inputs* of tap l+1, so slope times direction is a guess of the gradient there. The local
vector-Jacobian product, φ', turns it into a guess of g_l. No tap follows the output tap, so its direction is ε ~ law
over its units, as in the upstream family.
Random: α of every tap but the last, ε of the last. Biased: the mean is φ' ⊙ E[uuᵀ] ∂L/∂X.
Source: Singhal et al. 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.arguments import check_flag
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import Slope, check_switches, rescaled_to
from fganalysis.estimators.feedback.matrices import read_by_next
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise


@dataclass(frozen=True)
class ActivationMixing:
    """ĝ = φ' ⊙ (t u); ``normalise=False`` leaves u unscaled.

    The other fields are the switches of docs/notation.md#the-three-switches. Row b of α is the noise vector of example
    b, so noise is independent across examples. A call raises ValueError where something other than elementwise
    functions stands between two taps.

    Closed form: with ``normalise`` for rotation-invariant laws (Gaussian, sphere), in one-dimensional integrals;
    without it for every law. With ``normalise`` and another law there is none: E uuᵀ then needs more than moments.
    """

    normalise: bool = True
    noise: Noise = GAUSSIAN
    slope: Slope = "example"
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        check_flag("normalise", self.normalise)
        check_switches(self)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        at_inputs = [self._mixtures(snapshot, index, n_guesses, generator) for index in range(len(snapshot.taps) - 1)]
        last = snapshot.taps[-1].outputs
        at_output = self.noise.draw((n_guesses, *last.shape), generator, last)
        slopes = self._slopes(snapshot, at_inputs, at_output)
        if self.slope == "batch":
            slopes = slopes.sum(-1, keepdim=True)
        per_layer = slopes.expand(-1, len(snapshot.taps), -1).unsqueeze(-1).unbind(1)
        guesses = [
            direction.mul_(jacobian.derivative).mul_(t)
            for direction, jacobian, t in zip(at_inputs, snapshot.upstream, per_layer[:-1], strict=True)
        ]
        return ActivationEstimates((*guesses, at_output.mul_(per_layer[-1])))

    def _mixtures(self, snapshot: Snapshot, index: int, n_guesses: int, generator: torch.Generator) -> Tensor:
        """u of tap ``index``, (guess, example, unit), at the inputs of the tap after it."""
        mixed = read_by_next(snapshot, index)
        shape = (n_guesses, snapshot.n_examples, snapshot.n_examples)
        directions = (self.noise.draw(shape, generator, mixed) @ mixed).mul_(mixed > 0)
        return rescaled_to(directions, mixed.shape[1] ** 0.5) if self.normalise else directions

    def _slopes(self, snapshot: Snapshot, at_inputs: list[Tensor], at_output: Tensor) -> Tensor:
        """Slopes by tap whose guess they scale, (guess, 1 or layer, example).

        Adding u to the inputs of tap l+1 adds W_{l+1} u to its outputs, where a snapshot takes slopes.
        """
        images = [u @ jacobian.weight.T for u, jacobian in zip(at_inputs, snapshot.upstream, strict=True)]
        still = [at_output.new_zeros(1).expand(len(at_output), *tap.outputs.shape) for tap in snapshot.taps]
        if self.layers == "joint":
            moved = [still[0], *images]
            return snapshot.slopes([*moved[:-1], moved[-1] + at_output], "joint")
        hidden = snapshot.slopes([still[0], *images], "separate")[:, 1:]
        return torch.cat([hidden, snapshot.slopes([*still[:-1], at_output], "separate")[:, -1:]], dim=1)
