"""Activity perturbation: a random direction at every pre-activation.

    y_l,b = ε  (or M_l,b ε with ``active_only``, M = diag(1[φ'(s) ≠ 0]), the units that are alive),  ĝ = t y

Random: ε of each tap, example (unless shared) and guess. Unbiased: a dead unit's gradient is zero.
Source: Ren et al. 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fganalysis.arguments import check_flag
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers, Tap
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import Factor, Slope, check_switches, guess_along, identity, passes_along
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise
from fganalysis.estimators.passes import Passes


@dataclass(frozen=True)
class ActivityPerturbation:
    """ĝ = t ε; the fields are the switches of docs/notation.md#the-three-switches."""

    noise: Noise = GAUSSIAN
    shared: bool = False
    slope: Slope = "example"
    layers: Layers = "joint"
    active_only: bool = False

    def __post_init__(self) -> None:
        check_switches(self)
        check_flag("active_only", self.active_only)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        factors = [identity(tap.units) for tap in snapshot.taps]
        if self.active_only:
            factors = [_active(tap) for tap in snapshot.taps]
        return guess_along(self, snapshot, factors, n_guesses, generator)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return passes_along(self, snapshot, n_guesses)


def _active(tap: Tap) -> Factor:
    """The units that are alive; at an output tap all of them.

    Raises:
        ValueError: a tap without elementwise functions alone between it and the next Linear module.
    """
    if tap.following is None:
        return identity(tap.units)
    if tap.derivative is None:
        raise ValueError(
            f"active_only masks dead units, which are unknown at tap {tap.name!r}: between it and the next Linear "
            "module there must be elementwise functions only"
        )
    mask = (tap.derivative != 0).to(tap.derivative)
    return Factor(tap.units, lambda noise: noise * mask)
