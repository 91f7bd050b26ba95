"""check_unbiased(): is an estimator's mean the gradient? A verdict whose error rates hold whenever it stops.

Guesses are drawn in looks of 64 blocks, and blocks grow from look to look. After each look the data are the sums of
the errors ĝ − g over each block, in each space in which the estimator guesses. `fganalysis.statistics.anytime_evidence`
turns them into two things.

* Evidence of a bias: a weighted average of the evidence along many directions. They are the gradient itself (which
  shows a wrong scale); the parts of the gradient in each layer, example, unit and input (a dropped example, a masked
  unit); every single coordinate; and two directions learned from earlier looks. These two are the mean error so far,
  weighted by its precision, and the same restricted to its largest coordinates.
* An upper bound of the norm of the bias, from pairs of different blocks.

**Guarantees.** An unbiased estimator is called biased with probability at most ``alpha``, whenever the sampling stops.
This holds exactly where block sums are symmetric about their mean, whatever their tails, and otherwise asymptotically
in the size of a block. An estimator with a relative bias above the tolerance is called unbiased with probability at
most ``alpha``, asymptotically (means of groups of guesses are taken as Gaussian). No guarantee covers events that have
not occurred in any guess. If the mean of an estimator comes from events rarer than about one guess in a hundred, its
bias needs another argument.

**Power**, for alpha = 0.01. Along a direction fixed beforehand, a bias of b standard deviations of one guess is found
after about 30/b² guesses. Let v‖g‖² be the variance along the gradient; v = 2 for weight perturbation with Gaussian
noise. A gradient scaled by 1 + r is found after about 30 v/r² guesses, whatever the number of weights. A relative bias
r spread over d equally noisy coordinates is found after about 8 √(2d) v/r². An unbiased estimator is recognised after
20 (in many dimensions) to 50 (in one dimension) times ‖C‖_F/(tolerance ‖g‖)² guesses, with C the covariance of a guess.

Proofs: docs/mathematics.md#anytime-evidence, docs/mathematics.md#upper-bound-of-a-bias,
docs/mathematics.md#verdicts-of-check_unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fganalysis.arguments import check_choice, check_flag, check_number, check_seed, check_whole
from fganalysis.assertions.error_blocks import LEAST_GUESSES, AnySpace, Blocks, block_sizes
from fganalysis.assertions.guess_errors import AXES, LEARNED, GuessErrors
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label
from fganalysis.measuring.blocks import Seeds
from fganalysis.measuring.own_draws import DrawFunction
from fganalysis.measuring.sound_guesses import estimator_on
from fganalysis.measuring.truth import Truth
from fganalysis.statistics.anytime_evidence import NormBound, boundary, spent

Outcome = Literal["unbiased", "biased", "undecided"]
COUNTED = {"activation": "unit", "weight": "unit", "parameter": "entry"}  # By what a coordinate is counted.
NAMED_IN_VERDICT = 8  # Parameters that the text of a verdict names; its field names them all.


@dataclass(frozen=True)
class Finding:
    """The result in one space, at confidence 1 − alpha. Relative numbers are in units of ‖g‖.

    Attributes:
        relative_bias: the estimate; zero where the unbiased estimate of its square is negative.
        interval: its bounds, each of which holds with confidence 1 − alpha.
        shrinkage: ⟨mean guess, g⟩/‖g‖².
        shrinkage_interval: its bounds, which both hold together with confidence 1 − alpha.
        direction: in words, the direction with the largest component of the bias. A direction learned from the guesses
            is named only where no fixed direction holds half of the squared bias.
        layer, unit: the place of the coordinate with the most evidence of a bias; without a network, unit is its place
            in the flattened array.
        log_evidence: the logarithm of the evidence of a bias larger than rounding errors.
        detectable: the smallest relative bias, in any direction, that this number of guesses can exclude.
        detectable_scale: the smallest relative error of scale that this number of guesses can find.
    """

    space: str
    relative_bias: float
    interval: tuple[float, float]
    shrinkage: float
    shrinkage_interval: tuple[float, float]
    direction: str
    layer: str
    unit: int
    log_evidence: float
    detectable: float
    detectable_scale: float


@dataclass(frozen=True)
class Verdict:
    """Unbiased to within the tolerance, biased, or undecided; ``str`` gives it as a paragraph.

    Attributes:
        n_guesses: number of guesses drawn.
        guesses_needed: if undecided, an estimate of the total number of guesses for a verdict: for "biased" if there is
            already at least half of the evidence for it, and otherwise for "unbiased". A bias may show earlier.
        findings: a `Finding` for each space in which the estimator guesses; the space that decided comes first.
        not_looked_at: trainable parameters for which there is no guess, about which the verdict says nothing.
    """

    outcome: Outcome
    estimator: str
    alpha: float
    tolerance: float
    seed: int
    n_guesses: int
    guesses_needed: int
    findings: tuple[Finding, ...]
    not_looked_at: tuple[str, ...]

    def __str__(self) -> str:
        detectable = max(finding.detectable for finding in self.findings)
        detectable_scale = max(finding.detectable_scale for finding in self.findings)
        return (
            f"{self.estimator} is {self._reason()}. Seed {self.seed}, alpha {self.alpha:g}, tolerance "
            f"{self.tolerance:g}, {self.n_guesses} guesses: enough to exclude a relative bias of {detectable:.2g} in "
            f"any direction and to find an error of scale of {detectable_scale:.2g}.{self._rest()}"
        )

    def _rest(self) -> str:
        if not self.not_looked_at:
            return ""
        names = ", ".join(map(repr, self.not_looked_at[:NAMED_IN_VERDICT]))
        more = len(self.not_looked_at) - NAMED_IN_VERDICT
        return f" Not looked at, as there is no guess for them: {names}{f' and {more} more' if more > 0 else ''}."

    def _reason(self) -> str:
        # Four digits of 1 - 1e-6 would be a confidence of 1.
        level = f"{1 - self.alpha:.4g}" if self.alpha >= 1e-4 else f"1 - {self.alpha:g}"
        first, confidence = self.findings[0], f"confidence {level}"
        lower, upper = first.interval
        if self.outcome == "unbiased":
            bounds = " and ".join(
                f"at most {finding.interval[1]:.2g} in {finding.space} space" for finding in self.findings
            )
            return f"unbiased to within the tolerance: relative bias {bounds} ({confidence})"
        if self.outcome == "undecided":
            return (
                f"undecided: relative bias {first.relative_bias:.2g}, at most {upper:.2g} ({confidence}) in "
                f"{first.space} space; a verdict would take about {self.guesses_needed:.2g} guesses, "
                "or fewer if a bias shows before"
            )
        return (
            f"biased in {first.space} space: relative bias {first.relative_bias:.3g}, at least {lower:.2g} and at most "
            f"{upper:.2g} (each with {confidence}), most evident {first.direction}; the largest coordinate is at "
            f"{COUNTED[first.space]} {first.unit} of layer {first.layer!r}; along the gradient the mean guess is "
            f"{first.shrinkage:.4g} times it, between {first.shrinkage_interval[0]:.4g} and "
            f"{first.shrinkage_interval[1]:.4g}"
        )


def check_unbiased(
    estimator: str | Estimator | DrawFunction,
    snapshot: Snapshot | Truth,
    alpha: float = 0.01,
    tolerance: float = 0.05,
    max_guesses: int = 2**18,
    seed: int = 0,
    *,
    space: AnySpace | None = None,
    memory: int = 2**30,
    workers: int | None = None,
) -> Verdict:
    """Is E ĝ = g? Samples until the relative bias ‖E ĝ − g‖/‖g‖ is above zero, or within ``tolerance``, at 1 − alpha.

    Guarantees, power and method: see this module's docstring. "unbiased" is asked first, so a bias that is real but
    within the tolerance may get either name.

    Args:
        estimator: a key of `ESTIMATORS` or an instance; with a `Truth`, a draw as in `fganalysis.measure`.
        snapshot: from `capture`, or an exact gradient from `fganalysis.truth`.
        alpha: probability allowed to each wrong verdict.
        tolerance: relative bias, over all layers together, that is as good as none.
        max_guesses: where to stop undecided, at least 2048.
        seed: of the noise; the same seed gives the same verdict.
        space: "activation" or "weight", of a truth "parameter"; default every space in which the estimator guesses.
            Evidence of a bias in either makes it "biased", each at half of alpha; to be "unbiased" takes both. A bias
            at the activations may cancel in the weights: where only training counts, ask for "weight".
        memory: bytes of working space, about 700 for each number of a guess, in each space: sums over 64 groups of
            guesses, the evidence along every direction, and blocks in flight. Does not change the verdict.
        workers: threads on the CPU; does not change the verdict. Default one, or the cores for large guesses, as far as
            the memory allows; always one in forward mode.

    Raises:
        ValueError: alpha outside (0, 1), a tolerance that is not positive and finite or within rounding errors, too few
            guesses, a seed below 0, no snapshot, a space without guesses, too little memory, with how much it takes, a
            gradient of zero, guesses that are NaN or infinite, not as many as asked for or of another shape or data
            type than the gradient.
    """
    chosen = estimator_on(snapshot, estimator)
    check_seed("seed", seed)
    check_number("alpha", alpha, above=0, below=1)
    check_number("tolerance", tolerance, above=0)
    check_whole("max_guesses", max_guesses, LEAST_GUESSES)
    if space is not None:
        check_choice("space", space, tuple(AXES))
    check_whole("memory", memory)
    if workers is not None:
        check_whole("workers", workers)
    blocks = Blocks(chosen, snapshot, space, memory, workers)
    if tolerance <= 2 * blocks.precision:
        raise ValueError(f"tolerance must be above rounding errors, {2 * blocks.precision:.2g} here, got {tolerance}")
    share, seeds = alpha / len(blocks.errors), Seeds.of(seed, snapshot, chosen)
    bounds: list[NormBound] = []
    outcome: Outcome = "undecided"
    for look, block_size in enumerate(block_sizes(max_guesses)):
        blocks.draw(seeds, look, block_size)
        if look > 0:
            bounds = [errors.bound(spent(alpha, look)) for errors in blocks.errors]
            outcome = _outcome(blocks.errors, bounds, tolerance, share)
        if outcome != "undecided":
            break
    findings = [_finding(errors, bound, alpha, share) for errors, bound in zip(blocks.errors, bounds, strict=True)]
    findings.sort(key=lambda finding: -(finding.log_evidence if outcome == "biased" else finding.interval[1]))
    n_guesses = blocks.errors[0].n_guesses
    return Verdict(
        outcome=outcome,
        estimator=label(chosen),
        alpha=alpha,
        tolerance=tolerance,
        seed=seed,
        n_guesses=n_guesses,
        guesses_needed=_whole(n_guesses * max(1.0, _factor_needed(blocks.errors, bounds, tolerance, share))),
        findings=tuple(findings),
        not_looked_at=blocks.not_looked_at,
    )


def _outcome(errors: list[GuessErrors], bounds: list[NormBound], tolerance: float, share: float) -> Outcome:
    if all(bound.upper <= tolerance * space.norm for space, bound in zip(errors, bounds, strict=True)):
        return "unbiased"
    if any(space.evidence.log(space.rounding()) >= -np.log(share) for space in errors):
        return "biased"
    return "undecided"


def _factor_needed(errors: list[GuessErrors], bounds: list[NormBound], tolerance: float, share: float) -> float:
    """The number of guesses that a verdict takes, over the number drawn so far.

    It is estimated for "biased" only where half of the (logarithmic) evidence is there. Less evidence is as often noise
    as not, and an extrapolation from noise always promises a verdict soon.
    """
    bounded = max(bound.factor_needed(tolerance * space.norm) for space, bound in zip(errors, bounds, strict=True))
    half = -np.log(share) / 2
    seen = [space for space in errors if space.evidence.log(space.rounding()) >= half or np.isinf(bounded)]
    return min([bounded, *(space.evidence.factor_needed(share, space.rounding()) for space in seen)])


def _whole(guesses: float) -> int:
    # The number is infinite where no number of guesses would bring a verdict.
    return int(min(guesses, 2.0**62))


def _finding(errors: GuessErrors, bound: NormBound, alpha: float, share: float) -> Finding:
    norm, n_guesses, evidence = errors.norm, errors.n_guesses, errors.evidence
    against = evidence.per_direction(errors.rounding())
    n_fixed = len(against) - len(LEARNED)
    coordinate = n_fixed - len(errors.gradient) + int(against[n_fixed - len(errors.gradient) : n_fixed].argmax())
    at = errors.place(coordinate)
    components = evidence.components()
    clearest = int(components[:n_fixed].argmax())
    if components[clearest] ** 2 < bound.squared / 2:
        clearest = n_fixed + int(against[n_fixed:].argmax())
    shrinkage, deviation = errors.along_gradient()
    half = boundary(float(n_guesses), alpha) * deviation / n_guesses
    scale_found = boundary(float(evidence.squares[0]), share * float(np.exp(evidence.log_weights[0])))
    return Finding(
        space=errors.space,
        relative_bias=float(np.sqrt(max(bound.squared, 0.0))) / norm,
        interval=(evidence.least_bias(share) / norm, bound.upper / norm),
        shrinkage=shrinkage,
        shrinkage_interval=(shrinkage - half, shrinkage + half),
        direction=errors.place(clearest).name,
        layer=at.layer,
        unit=at.unit,
        log_evidence=evidence.log(errors.rounding()),
        detectable=bound.without_bias / norm,
        detectable_scale=scale_found / float(evidence.reach[0]) / norm,
    )


def assert_unbiased(
    estimator: str | Estimator | DrawFunction,
    snapshot: Snapshot | Truth,
    alpha: float = 0.01,
    tolerance: float = 0.05,
    max_guesses: int = 2**18,
    seed: int = 0,
    *,
    space: AnySpace | None = None,
    memory: int = 2**30,
    workers: int | None = None,
    may_be_undecided: bool = False,
) -> Verdict:
    """For a test: passes with the verdict where `check_unbiased`, with the same arguments, finds no bias.

    A run that stops undecided fails too, unless ``may_be_undecided``: a test that has seen too little proves nothing.

    Raises:
        AssertionError: the verdict in words, seed included. ValueError: as `check_unbiased`.
    """
    check_flag("may_be_undecided", may_be_undecided)
    verdict = check_unbiased(
        estimator, snapshot, alpha, tolerance, max_guesses, seed, space=space, memory=memory, workers=workers
    )
    if verdict.outcome == "biased" or (verdict.outcome == "undecided" and not may_be_undecided):
        raise AssertionError(str(verdict))
    return verdict
