"""Activation mixing: each example is perturbed along a random mixture of the whole batch's activations.

    u_l,b = (α X)_b ⊙ 1[X_b > 0] rescaled to norm √n,   α ~ law^{B×B},   X (example, unit) the inputs of tap l+1
    t_b = Σ_l ⟨u_l,b, ∂L/∂X_l,b⟩ + ⟨ε_b, g_last,b⟩,   ĝ_l,b = φ'(s_l,b) ⊙ (t_b u_l,b),   ĝ_last,b = t_b ε_b

The direction is added to the *inputs* of tap l+1, so slope times direction is a guess of the gradient there. The local
vector-Jacobian product, φ', turns it into a guess of g_l. No tap follows the output tap, so its direction is ε ~ law
over its units, as in the upstream family.
On any other network X is what arrives at the next tap downstream, (example, number), all numbers of an example as one
vector; slopes are by the gradient there, and the guess is pulled back to the tap through what stands between
(`fganalysis.capturing.between`). Every output tap has an ε.

Random: α of every tap but the last, ε of the last. Biased: the mean is φ' ⊙ E[uuᵀ] ∂L/∂X.
Source: Singhal et al. 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.arguments import check_flag
from fganalysis.capturing.between import arrivals, arriving_gradients, owners_of
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import Slope, check_switches, passes_along, rescaled_to
from fganalysis.estimators.feedback.delivery import is_plain_chain
from fganalysis.estimators.feedback.matrices import read_by_next
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise
from fganalysis.estimators.passes import Passes


@dataclass(frozen=True)
class ActivationMixing:
    """ĝ = φ' ⊙ (t u); ``normalise=False`` leaves u unscaled.

    The other fields are the switches of docs/notation.md#the-three-switches. Row b of α is the noise vector of example
    b, so noise is independent across examples.

    Closed form: with ``normalise`` for rotation-invariant laws (Gaussian, sphere), in one-dimensional integrals;
    without it for every law. With ``normalise`` and another law there is none: E uuᵀ then needs more than moments.

    Raises:
        ValueError: a wrong field; at a call on a network that is no chain of Linear modules, examples that interact, no
            numbers of each example alone to mix, or a snapshot without a backward pass or of a part of a batch.
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
        if not is_plain_chain(snapshot):
            return self._on_the_graph(snapshot, n_guesses, generator)
        hidden = range(len(snapshot.taps) - 1)
        at_inputs = [self._mixtures(read_by_next(snapshot, index), n_guesses, generator) for index in hidden]
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

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return passes_along(self, snapshot, n_guesses, beside=["mixtures of the activations of all examples"])

    def _on_the_graph(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        """Slopes along directions at the places that are perturbed, and guesses pulled back from there."""
        hidden = [place for place in arrivals(snapshot, "a mixture of activations") if place is not None]
        pairs = zip(snapshot.taps, snapshot.gradients, strict=True)
        at_outputs = [(tap, gradient) for tap, gradient in pairs if tap.following is None]
        directions = [self._mixtures(place.values, n_guesses, generator) for place in hidden]
        gradients = arriving_gradients(snapshot, hidden)
        slopes = [torch.linalg.vecdot(u, gradient) for u, gradient in zip(directions, gradients, strict=True)]
        for tap, gradient in at_outputs:
            directions.append(self.noise.draw((n_guesses, *gradient.shape), generator, gradient))
            slopes.append(owners_of(tap).summed(torch.linalg.vecdot(directions[-1], gradient)))
        if self.layers == "joint":
            slopes = [sum(slopes[1:], slopes[0])] * len(slopes)
        if self.slope == "batch":
            slopes = [slope.sum(-1, keepdim=True).expand_as(slope) for slope in slopes]
        guesses: dict[int, Tensor] = {}
        for place, direction, slope in zip(hidden, directions, slopes, strict=False):
            guesses[id(place.tap)] = place.pulled(direction.mul_(slope.unsqueeze(-1)))
        n = len(hidden)
        for (tap, _), direction, slope in zip(at_outputs, directions[n:], slopes[n:], strict=True):
            guesses[id(tap)] = direction.mul_(owners_of(tap).spread(slope).unsqueeze(-1))
        return ActivationEstimates(tuple(guesses[id(tap)] for tap in snapshot.taps))

    def _mixtures(self, mixed: Tensor, n_guesses: int, generator: torch.Generator) -> Tensor:
        """u, (guess, example, unit), at what a tap reads, X (example, unit)."""
        shape = (n_guesses, len(mixed), len(mixed))
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
