"""Whether a loss is the mean over its examples, a sum of parts that examples do not share, or neither.

What the slope of an example needs is a sum of parts, L(o) = Σ_e f_e(o_e), given the batch: a mean over tokens without
the ignored ones, or with weights of classes, is one. A mean over examples is more: it is also known for a part of the
batch, as `Subsampled` needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fganalysis.capturing.batch import gradients_at_outputs, map_tensors, output_owners
from fganalysis.capturing.errors import CannotMeasure
from fganalysis.capturing.examples import SAME
from fganalysis.capturing.snapshot import Snapshot


def with_parts_of_the_loss(snapshot: Snapshot) -> Snapshot:
    """The snapshot with what its loss is made of.

    Raises:
        CannotMeasure: a loss that fails on a part of the batch, or that compares all outputs with all targets.
    """
    mean = is_mean(snapshot)
    if not mean:
        _refuse_all_with_all(snapshot)
    if mean or snapshot.interaction or snapshot.n_examples == 1 or is_sum_of_parts(snapshot):
        return _told(snapshot, mean, snapshot.interaction)
    return _told(snapshot, mean, "loss_fn compares examples with each other")


def _told(snapshot: Snapshot, mean: bool, interaction: str) -> Snapshot:
    plan = replace(snapshot.plan, mean_loss=mean, interaction=interaction)
    return replace(snapshot, mean_loss=mean, interaction=interaction, plan=plan)


def is_mean(snapshot: Snapshot) -> bool:
    """Splits the batch unevenly: a mean over examples is the weighted mean of the parts' losses.

    Raises:
        CannotMeasure: a loss function that fails on a part of the batch.
    """
    n, loss = snapshot.n_examples, snapshot.loss.double()
    if not isinstance(snapshot.outputs, Tensor) or not isinstance(snapshot.targets, Tensor):
        return False
    if len(snapshot.outputs) != n or not snapshot.targets.ndim or len(snapshot.targets) != n:
        return False
    for cut in sorted({1, n // 2, n - 1} - {0, n}):
        parts = []
        for rows in (slice(0, cut), slice(cut, n)):
            length = len(range(*rows.indices(n)))
            try:
                part = snapshot.loss_fn(snapshot.outputs[rows], snapshot.targets[rows]).detach()
            except Exception as error:
                raise CannotMeasure(
                    f"loss_fn is not a mean over examples: it works on the batch of {n} but fails on {length} of it"
                ) from error
            parts.append(part.double() * length / n)
        size = max(float(sum(part.abs() for part in parts)), float(loss.abs()))
        if not bool(torch.isfinite(sum(parts, loss))) or abs(float(sum(parts, -loss))) > 1e-4 * size:
            return False
    return True


def _refuse_all_with_all(snapshot: Snapshot) -> None:
    """Outputs (example, 1) and targets (example,) are broadcast against each other, which nobody means."""
    outputs, targets = snapshot.outputs, snapshot.targets
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return
    if outputs.ndim == 2 and outputs.shape[1] == 1 and targets.ndim == 1 and len(outputs) > 1:
        raise CannotMeasure(
            f"loss_fn is not a mean over examples: outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} "
            "may be compared all with all, so give targets.unsqueeze(1) or outputs.squeeze(1)"
        )


def is_sum_of_parts(snapshot: Snapshot) -> bool:
    """Whether the loss's gradient at some examples' outputs does not change with those of the others.

    The others are replaced by halves of the outputs of the first, which are in the range of what the network returns.
    """
    n = snapshot.n_examples
    first = torch.arange(n) < (n + 1) // 2
    other_outputs = map_tensors(snapshot.outputs, lambda t: _exchanged(t, first))
    before, after = (
        gradients_at_outputs(snapshot.loss_fn, outputs, snapshot.targets)
        for outputs in (snapshot.outputs, other_outputs)
    )
    for gradient, changed in zip(before, after, strict=True):
        kept = _kept(gradient, first)
        if kept is None:
            continue
        difference = (kept(gradient) - kept(changed)).double().norm()
        if not bool(difference <= SAME * kept(gradient).double().norm()):
            return False
    return True


def _exchanged(tensor: Tensor, first: Tensor) -> Tensor:
    found = output_owners(tensor, len(first)) if tensor.is_floating_point() else None
    if found is None:
        return tensor
    axis, owners = found
    mask = owners.spread(first.float()).to(tensor.device) > 0
    moved = tensor.movedim(axis, 0).clone()
    places = mask.nonzero()[:, 0]
    others = (~mask).nonzero()[:, 0]
    moved[others] = moved[places[torch.arange(len(others), device=places.device) % len(places)]] / 2
    return moved.movedim(0, axis)


def _kept(tensor: Tensor, first: Tensor) -> Callable[[Tensor], Tensor] | None:
    found = output_owners(tensor, len(first))
    if found is None:
        return None
    axis, owners = found
    mask = owners.spread(first.float()).to(tensor.device) > 0
    return lambda gradient: gradient.movedim(axis, 0)[mask]
