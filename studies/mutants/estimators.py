"""Estimators that are wrong on purpose, each beside the right one that it claims to be.

Every mistake is one keystroke or one plausible idea away from the right code. All work where hidden layers have equally
many units; on the network and batch of `studies.mutants.small_network` each of them makes a difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
from fganalysis.estimators.noise import Rademacher
from studies.mutants.broken_activity import BrokenActivity, OnGuesses, OnNoise, OnSlopes
from studies.mutants.broken_others import (
    AllButTheLast,
    DividedByOneLess,
    Reseeded,
    TransposedUpstream,
    WeightDecayLeftIn,
)
from studies.mutants.mistakes import (
    last_example_times,
    layers_swapped,
    mask_from_zero,
    mask_of_another_example,
    mask_off_by_one,
    mean_over_examples,
    noise_centred,
    noise_of_the_first_guess,
    noise_of_the_first_layer,
    noise_shared,
    noise_shifted,
    noise_times,
    normalised,
    not_divided_by_examples,
    one_coordinate_off,
    one_sign_flipped,
    only_downhill,
    outliers_dropped,
    scaled,
    slope_of_the_next_example,
    slope_of_the_next_layer,
    slopes_clipped,
    slopes_stale,
    slopes_summed,
    spread,
)


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
