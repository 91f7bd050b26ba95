"""Estimators that are wrong on purpose, each beside the right one that it claims to be.

Every mistake is one keystroke or one plausible idea away from the right code. All work where hidden layers have equally
many units; `snapshot` is a network and a batch on which each of them makes a difference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators import (
    ActivityPerturbation,
    Estimator,
    FiniteDifference,
    Minibatch,
    MultiTangent,
    OrthogonalUpstream,
    Upstream,
    WeightPerturbation,
)
from fganalysis.estimators.directional import Factor, Slope, guess_along, identity
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, WeightEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise, Rademacher

OnNoise = Callable[[Snapshot, list[Tensor]], list[Tensor]]
OnSlopes = Callable[[Snapshot, list[Tensor], Tensor], Tensor]
OnGuesses = Callable[[Snapshot, list[Tensor]], list[Tensor]]


def snapshot(units: int = 2) -> Snapshot:
    """Two layers of ``units`` ReLU units and classes without biases, and three examples, the second one padding.

    The padding is an input of zeros, so that pre-activations of exactly zero occur; one unit of the others is dead.
    Twelve numbers of noise at the activations of two units: few enough to enumerate.
    """
    network = fga.networks.mlp([units, units, units], bias=False, seed=9, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(3, units, generator=generator, dtype=torch.float64)
    inputs[1] = 0
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.tensor([0, 1, 1]))


@dataclass(frozen=True)
class BrokenActivity:
    """Activity perturbation written out, with three places for a mistake; without any it is the right one.

    ``on_noise`` and ``on_guesses`` get (guess, example, unit) a tap, ``on_slopes`` the noise as well as the slopes,
    (guess, 1 or layer, example).
    """

    name: str
    on_noise: OnNoise | None = None
    on_slopes: OnSlopes | None = None
    on_guesses: OnGuesses | None = None
    noise: Noise = GAUSSIAN
    layers: Layers = "separate"

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        drawn = [self.noise.draw((n_guesses, *tap.outputs.shape), generator, tap.outputs) for tap in snapshot.taps]
        if self.on_noise is not None:
            drawn = self.on_noise(snapshot, drawn)
        slopes = snapshot.slopes(drawn, self.layers)
        if self.on_slopes is not None:
            slopes = self.on_slopes(snapshot, drawn, slopes)
        per_layer = slopes.expand(-1, len(drawn), -1).unbind(1)
        guesses = [t.unsqueeze(-1) * noise for t, noise in zip(per_layer, drawn, strict=True)]
        return ActivationEstimates(tuple(guesses if self.on_guesses is None else self.on_guesses(snapshot, guesses)))


def scaled(factor: float) -> OnGuesses:
    return lambda snapshot, guesses: [factor * guess for guess in guesses]


def one_coordinate_off(size: float) -> OnGuesses:
    """The last unit of the last example, by ``size`` times the gradient's norm."""

    def change(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
        guesses[-1][:, -1, -1] += size * _norm(snapshot.gradients)
        return guesses

    return change


def spread(size: float) -> OnGuesses:
    """A fixed random direction, unknown to the checks, of relative size ``size``."""

    def change(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        offsets = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in snapshot.gradients]
        scale = size * _norm(snapshot.gradients) / _norm(offsets)
        return [guess + scale * offset for guess, offset in zip(guesses, offsets, strict=True)]

    return change


def last_example_times(factor: float) -> OnGuesses:
    def change(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
        for guess in guesses:
            guess[:, -1] *= factor
        return guesses

    return change


def one_sign_flipped(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    guesses[-1][:, -1, -1] *= -1
    return guesses


def mask_off_by_one(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    masks = [(tap.outputs > 0).roll(1, dims=1) for tap in snapshot.taps[:-1]]
    return [guess * mask for guess, mask in zip(guesses, masks, strict=False)] + guesses[-1:]


def mask_of_another_example(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    masks = [(tap.outputs > 0).roll(1, dims=0) for tap in snapshot.taps[:-1]]
    return [guess * mask for guess, mask in zip(guesses, masks, strict=False)] + guesses[-1:]


def mask_from_zero(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    masks = [tap.outputs >= 0 for tap in snapshot.taps[:-1]]
    return [guess * mask for guess, mask in zip(guesses, masks, strict=False)] + guesses[-1:]


def layers_swapped(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    return [guesses[1], guesses[0], *guesses[2:]]


def normalised(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    length = torch.cat([guess.flatten(1) for guess in guesses], dim=1).norm(dim=1)[:, None, None]
    # A guess of zero, which an enumeration has, stays zero.
    return [guess * (_norm(snapshot.gradients) / length.clamp(min=1e-300)) for guess in guesses]


def mean_over_examples(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    return [guess.mean(1, keepdim=True).expand_as(guess) for guess in guesses]


def not_divided_by_examples(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    return [guess * snapshot.n_examples for guess in guesses]


def noise_times(factor: float) -> OnNoise:
    return lambda snapshot, drawn: [factor * noise for noise in drawn]


def noise_shifted(shift: float) -> OnNoise:
    return lambda snapshot, drawn: [noise + shift for noise in drawn]


def noise_shared(snapshot: Snapshot, drawn: list[Tensor]) -> list[Tensor]:
    return [noise[:, :1].expand_as(noise) for noise in drawn]


def noise_centred(snapshot: Snapshot, drawn: list[Tensor]) -> list[Tensor]:
    return [noise - noise.mean(1, keepdim=True) for noise in drawn]


def noise_of_the_first_layer(snapshot: Snapshot, drawn: list[Tensor]) -> list[Tensor]:
    return [drawn[0]] * len(drawn)


def noise_of_the_first_guess(snapshot: Snapshot, drawn: list[Tensor]) -> list[Tensor]:
    return [noise[:1].expand_as(noise) for noise in drawn]


def slopes_clipped(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    limit = _limit(snapshot)
    return slopes.clamp(-limit, limit)


def outliers_dropped(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    return torch.where(slopes.abs() <= _limit(snapshot), slopes, 0.0)


def only_downhill(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    return slopes.clamp(max=0)


def slope_of_the_next_layer(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    return slopes.roll(-1, dims=1)


def slope_of_the_next_example(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    return slopes.roll(-1, dims=2)


def slopes_summed(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    return slopes.sum(-1, keepdim=True).expand_as(slopes)


def slopes_stale(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    """Slopes of the network as it was one step of descent ago."""
    gradients = snapshot.remember("stale gradients", lambda: _gradients_before_a_step(snapshot, rate=0.3))
    return torch.stack([torch.linalg.vecdot(noise, g) for noise, g in zip(drawn, gradients, strict=True)], dim=1)


def _gradients_before_a_step(snapshot: Snapshot, rate: float) -> tuple[Tensor, ...]:
    network = copy.deepcopy(snapshot.network)
    with torch.enable_grad():
        loss = snapshot.loss_fn(network(snapshot.inputs), snapshot.targets)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
    with torch.no_grad():
        for weight, gradient in zip(network.parameters(), gradients, strict=True):
            weight.add_(gradient, alpha=rate)
    return fga.capture(network, snapshot.loss_fn, snapshot.inputs, snapshot.targets).gradients


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).norm()


def _limit(snapshot: Snapshot) -> Tensor:
    """1.5 standard deviations of the slopes, (layer, example)."""
    return 1.5 * torch.stack([gradient.norm(dim=1) for gradient in snapshot.gradients])


@dataclass(frozen=True)
class Reseeded:
    """``inner``, an instance, with a generator of its own, made anew at each call."""

    inner: Any
    noise: Noise = GAUSSIAN

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        own = torch.Generator(generator.device).manual_seed(0)
        return replace(self.inner, noise=self.noise)(snapshot, n_guesses, own)


@dataclass(frozen=True)
class TransposedUpstream:
    """Upstream with J in the place of Jᵀ, which goes unnoticed where the next layer has as many units."""

    noise: Noise = GAUSSIAN
    shared: bool = False
    slope: Slope = "example"
    layers: Layers = "separate"

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        factors = [Factor(jacobian.weight.shape[1], jacobian.product) for jacobian in snapshot.upstream]
        return guess_along(self, snapshot, [*factors, identity(snapshot.taps[-1].units)], n_guesses, generator)


@dataclass(frozen=True)
class WeightDecayLeftIn:
    """Weight perturbation along which the loss with its weight decay was differentiated."""

    decay: float
    noise: Noise = GAUSSIAN

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        estimates = WeightPerturbation(noise=self.noise)(snapshot, n_guesses, generator)
        more = [
            torch.einsum("gui,ui->g", d, t.weight) for d, t in zip(estimates.directions, snapshot.taps, strict=True)
        ]
        total = estimates.coefficients + self.decay * torch.stack(more).sum(0)[:, None]
        return replace(estimates, coefficients=total)


@dataclass(frozen=True)
class DividedByOneLess:
    """The sum of k guesses of weight perturbation over k − 1."""

    k: int
    noise: Noise = GAUSSIAN

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        mean = MultiTangent(self.k, noise=self.noise)(snapshot, n_guesses, generator)
        return replace(mean, coefficients=mean.coefficients * self.k / (self.k - 1))


@dataclass(frozen=True)
class AllButTheLast:
    """Rows of a minibatch, as of ``randint(0, n_examples - 1)`` with an end that is not included."""

    def draw(self, n_guesses: int, n_examples: int, size: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n_guesses, n_examples - 1, generator=generator, device=generator.device).argsort(1)[:, :size]


@dataclass(frozen=True)
class Mutant:
    """``broken`` claims to be ``claim``; ``wrong`` says what is wrong with it, in words.

    Attributes:
        claims_unbiased: a claim that is biased itself is no case for check_unbiased.
        guesses_independent: guesses of one call that depend on each other are no case for an enumeration.
    """

    name: str
    wrong: str
    claim: Estimator
    broken: Estimator
    claims_unbiased: bool = True
    guesses_independent: bool = True


ACTIVITY = ActivityPerturbation(layers="separate")
JOINT = ActivityPerturbation()
ALIVE = ActivityPerturbation(active_only=True)
WEIGHT = WeightPerturbation()


def activity(
    name: str,
    wrong: str,
    *,
    claim: Estimator = ACTIVITY,
    on_noise: OnNoise | None = None,
    on_slopes: OnSlopes | None = None,
    on_guesses: OnGuesses | None = None,
    layers: Layers = "separate",
) -> Mutant:
    """A mutant of activity perturbation."""
    return Mutant(name, wrong, claim, BrokenActivity(name, on_noise, on_slopes, on_guesses, layers=layers))


_ALL = (
    activity("scaled by 1.01", "every guess is 1 % too long", on_guesses=scaled(1.01)),
    activity("scaled by .9", "every guess is 10 % too short", on_guesses=scaled(0.9)),
    activity("sign", "every guess points uphill for downhill", on_guesses=scaled(-1.0)),
    activity("1/B missing", "a sum over examples in the place of the mean", on_guesses=not_divided_by_examples),
    activity("one sign flipped", "one unit of one example has the other sign", on_guesses=one_sign_flipped),
    activity("one coordinate off", "one coordinate is off by a tenth of ‖g‖", on_guesses=one_coordinate_off(0.1)),
    activity("spread", "an offset of .2 ‖g‖ in a random direction", on_guesses=spread(0.2)),
    activity("last example dropped", "a loop that ends one example early", on_guesses=last_example_times(0.0)),
    activity("last example doubled", "the last example is counted twice", on_guesses=last_example_times(2.0)),
    activity("mean over examples", "examples get each other's guess", on_guesses=mean_over_examples),
    activity("layers swapped", "the first two layers get each other's guess", on_guesses=layers_swapped),
    activity("normalised", "every guess is brought to the length ‖g‖", on_guesses=normalised),
    activity(
        "mask off by one",
        "dead units are those beside the dead ones",
        claim=ALIVE,
        on_guesses=mask_off_by_one,
        layers="joint",
    ),
    activity(
        "mask of another example",
        "the mask is off by an example",
        claim=ALIVE,
        on_guesses=mask_of_another_example,
        layers="joint",
    ),
    activity(
        "mask by >= 0", "units at exactly zero count as alive", claim=ALIVE, on_guesses=mask_from_zero, layers="joint"
    ),
    activity("noise times 1.05", "noise without unit variance", on_noise=noise_times(1.05)),
    activity("noise shifted", "noise of mean .2", on_noise=noise_shifted(0.2)),
    activity("noise shared", "one noise for all examples, an independent one claimed", on_noise=noise_shared),
    activity(
        "noise and slope shared",
        "one noise and the summed slope for all examples",
        on_noise=noise_shared,
        on_slopes=slopes_summed,
    ),
    activity("noise centred", "noise less its mean over the batch, to lower the variance", on_noise=noise_centred),
    activity(
        "noise reused in a layer",
        "all layers perturbed by one noise at once",
        claim=JOINT,
        on_noise=noise_of_the_first_layer,
        layers="joint",
    ),
    replace(
        activity("noise reused in a call", "all guesses of a call have one noise", on_noise=noise_of_the_first_guess),
        guesses_independent=False,
    ),
    activity("slope clipped", "slopes clipped at 1.5 standard deviations", on_slopes=slopes_clipped),
    activity("outliers dropped", "guesses above 1.5 standard deviations dropped", on_slopes=outliers_dropped),
    activity("only downhill", "guesses with a positive slope dropped", on_slopes=only_downhill),
    activity("slope of another layer", "each layer has the slope of the next", on_slopes=slope_of_the_next_layer),
    activity("slope of another example", "each example has the next one's slope", on_slopes=slope_of_the_next_example),
    activity("stale gradient", "slopes from before the last step", on_slopes=slopes_stale),
    activity("joint for separate", "one pass for all layers, a pass a layer claimed", layers="joint"),
    Mutant("generator ignored", "each call draws the same noise", ACTIVITY, Reseeded(ACTIVITY)),
    Mutant("fourth moment", "random signs, Gaussian noise claimed", WEIGHT, WeightPerturbation(noise=Rademacher())),
    Mutant("weight decay left in", "slopes of the loss plus its weight decay", WEIGHT, WeightDecayLeftIn(0.1)),
    Mutant("one-sided difference", "a large step for a slope", WEIGHT, FiniteDifference(epsilon=0.5, central=False)),
    Mutant(
        "rank off by one",
        "one direction less than the rank",
        OrthogonalUpstream(k="rank", layers="separate"),
        OrthogonalUpstream(k=1, layers="separate"),
    ),
    Mutant("transposed Jacobian", "J for Jᵀ", Upstream(layers="separate"), TransposedUpstream(), claims_unbiased=False),
    Mutant("n - 1 for n", "the sum of 8 guesses over 7", MultiTangent(8), DividedByOneLess(8)),
    Mutant("row never drawn", "the last row of the batch is never drawn", Minibatch(), Minibatch(rows=AllButTheLast())),
)
MUTANTS = {mutant.name: mutant for mutant in _ALL}
