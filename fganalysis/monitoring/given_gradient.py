"""What `.grad` holds, whoever put it there, against the exact gradient: cosine and relative error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A gradient so many times as long as the exact one and along it was scaled, as for mixed precision.
SCALED_FROM = 2.0**10
ALONG = 0.9


@dataclass(frozen=True)
class GivenGradient:
    """What is known of `.grad`: why it is not to be compared, or empty; the scaler whose scale it may have."""

    no_comparison: str = ""
    scaler: Any = None


@dataclass(frozen=True)
class Comparison:
    """Cosine and relative error of the given gradient, (layer,), all layers first; why numbers are NaN, or empty."""

    cosine: NDArray[np.float64]
    relative_error: NDArray[np.float64]
    reason: str = ""

    @classmethod
    def missing(cls, n_layers: int, reason: str) -> Comparison:
        return cls(np.full(n_layers, np.nan), np.full(n_layers, np.nan), reason)


def compared(
    network: torch.nn.Module, exact: Mapping[str, Tensor], layers: Sequence[Sequence[str]], scaler: Any
) -> Comparison:
    """`.grad` of the network's parameters against the exact gradient by name, in all layers and in each.

    layers: names of parameters. scaler: see `scale_of`. A parameter without `.grad` counts as a gradient of zero.
    """
    groups = [[*exact], *layers]
    given = {name: p.grad for name, p in network.named_parameters() if name in exact and p.grad is not None}
    if not given:
        reason = "no parameter has a .grad: call the monitor between backward() and the optimiser's step"
        return Comparison.missing(len(groups), reason)
    scale, zero = scale_of(scaler), next(iter(exact.values())).new_zeros((), dtype=torch.float64)
    of_names = {}
    for name, gradient in exact.items():
        true = gradient.double()
        found = given[name].to_dense().double() / scale if name in given else torch.zeros_like(true)
        squares = ((found * true).sum(), found.square().sum(), true.square().sum(), (found - true).square().sum())
        of_names[name] = torch.stack(squares)
    sums = torch.stack([sum((of_names[name] for name in group), zero.expand(4)) for group in groups])
    inner, own, true_squares, errors = sums.T.cpu().numpy()
    if not np.isfinite(own[0]):
        return Comparison.missing(len(groups), ".grad has NaN or infinite numbers")
    with np.errstate(divide="ignore", invalid="ignore"):
        # Roots first: a product of squares may be beyond double precision.
        lengths = np.sqrt(own) * np.sqrt(true_squares)
        cosine = np.where(lengths > 0, inner / lengths, np.nan)
        error = np.where(true_squares > 0, np.sqrt(errors / true_squares), np.nan)
        longer = np.sqrt(own[0] / true_squares[0])
    if scaler is None and longer > SCALED_FROM and cosine[0] > ALONG:
        reason = (
            f".grad is {longer:.4g} times as long as the gradient and along it, as a GradScaler makes it: give scaler="
        )
        return Comparison(np.clip(cosine, -1, 1), np.full(len(groups), np.nan), reason)
    return Comparison(np.clip(cosine, -1, 1), error, "" if own[0] > 0 else ".grad is zero, which has no direction")


def scale_of(scaler: Any) -> float:
    """By what `.grad` is to be divided: 1 without a scaler, and once the scaler has unscaled the optimiser's gradients.

    scaler: a `torch.amp.GradScaler`, or anything with its ``get_scale``.
    """
    if scaler is None or not getattr(scaler, "is_enabled", lambda: True)():
        return 1.0
    # There is no public way to ask whether `unscale_` was called since the last update; the scaler keeps it here.
    states = getattr(scaler, "_per_optimizer_states", {})
    done = any(getattr(state.get("stage"), "name", "READY") != "READY" for state in list(states.values()))
    return 1.0 if done else float(scaler.get_scale())


def several_processes() -> str:
    """Why ``.grad`` is not the gradient of this batch where several processes train; empty where one does."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return f".grad is the mean over {distributed.get_world_size()} processes, each with a batch of its own"
    return ""
