"""Activity perturbation with places for a mistake: in its noise, in its slopes, in its guesses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise

OnNoise = Callable[[Snapshot, list[Tensor]], list[Tensor]]
OnSlopes = Callable[[Snapshot, list[Tensor], Tensor], Tensor]
OnGuesses = Callable[[Snapshot, list[Tensor]], list[Tensor]]


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
