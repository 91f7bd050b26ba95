"""Gradient noise scale: the batch size at which the noise of a minibatch is as large as the gradient.

    tr Σ / ‖G‖²      Σ: covariance of the gradient of one example, G: its mean over all examples

The batch is cut into K parts of n examples. With G_k the gradient of the loss of part k and S = Σ_k G_k,

    U = (‖S‖² − Σ_k ‖G_k‖²)/(K(K − 1))         E U = ‖G‖²
    V = n ((1/K) Σ_k ‖G_k‖² − U)               E V = tr Σ

and V/U is the noise scale. A ratio of few parts has no interval; the means of V and of U over many steps have one.
Source: McCandlish et al. 2018, appendix A; docs/mathematics.md#gradient-noise-scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fganalysis.arguments import check_kind
from fganalysis.capturing.batch import called, replaced, tensors_in
from fganalysis.capturing.errors import CannotMeasure
from fganalysis.capturing.tap import Loss
from fganalysis.results import schema
from fganalysis.statistics.intervals import Array, Estimate
from fganalysis.statistics.ratio import ratio_of_means

PARTS = 8  # Each takes a pass of its own: more of them cost more, and say more of tr Σ.
LEAST_PARTS = 2
SAME_SUM = 1e-3  # How far the parts' gradients may add up to another gradient than that of the batch, relative to it.
ROUNDED = 1e-5  # Of the mean of their norms, which rounding may leave where they cancel.


@dataclass(frozen=True)
class Noise:
    """V and U, (layer,), all layers first: unbiased estimates of tr Σ of one example and of ‖G‖²."""

    example_variance: Array
    squared_mean: Array

    @classmethod
    def of(cls, squares: Array, squared_sum: Array, size: int) -> Noise:
        """From ‖G_k‖², (…, part), and ‖S‖², (…). size: examples of a part."""
        n, total = squares.shape[-1], squares.sum(-1)
        squared_mean = (squared_sum - total) / (n * (n - 1))
        return cls(size * (total / n - squared_mean), squared_mean)

    @property
    def scale(self) -> Array:
        """V/U, NaN where U is not positive."""
        known = self.squared_mean > 0
        return np.where(known, self.example_variance / np.where(known, self.squared_mean, 1.0), np.nan)


def noise_of_parts(
    network: torch.nn.Module,
    loss_fn: Loss,
    batch: tuple[Any, Any],
    n_examples: int,
    exact: Mapping[str, Tensor],
    layers: Sequence[Sequence[str]],
) -> Noise:
    """V and U of all weights and of some layers.

    Args:
        batch: inputs and targets. exact: the gradient of the batch's loss, by parameter. layers: names of parameters.

    Raises:
        CannotMeasure: a single example, or a batch, a loss or a network of which a part is not like the whole.
    """
    n_parts = min(PARTS, n_examples)
    if n_parts < LEAST_PARTS:
        raise CannotMeasure(f"the noise scale takes at least {LEAST_PARTS} examples, got {n_examples}")
    size = n_examples // n_parts
    n_parts = n_examples // size
    wanted = {name: parameter for name, parameter in network.named_parameters() if name in exact}
    groups = [[*exact], *layers]

    def gradient(start: int, length: int) -> dict[str, Tensor]:
        inputs, targets = (some_examples(part, n_examples, start, length) for part in batch)
        try:
            with torch.enable_grad():
                loss = loss_fn(called(network, inputs), targets)
                parts = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise CannotMeasure(
                "the network or the loss fails on a part of the batch, which was cut along the first axis that has as "
                "many places as there are examples"
            ) from error
        return {name: part for name, part in zip(wanted, parts, strict=True) if part is not None}

    total = {name: torch.zeros_like(part) for name, part in exact.items()}
    squares = []
    for index in range(n_parts):
        of_part = gradient(index * size, size)
        for name, part in of_part.items():
            total[name] += part
        squares.append(_squares(of_part, groups))
    by_part, squared_sum = torch.stack(squares, dim=-1).cpu().numpy(), _squares(total, groups).cpu().numpy()
    rest = n_examples - n_parts * size
    of_rest = gradient(n_examples - rest, rest) if rest else {}
    off = {name: part * (size / n_examples) - exact[name] for name, part in total.items()}
    for name, part in of_rest.items():
        off[name] += part * (rest / n_examples)
    errors, true = (float(_squares(parts, groups)[0]) ** 0.5 for parts in (off, exact))
    if not errors <= SAME_SUM * true + ROUNDED * float(np.sqrt(by_part[0]).mean()):
        raise CannotMeasure(
            "the gradients of parts of the batch do not add up to that of the batch, as the loss is no mean over "
            "examples (of unequally many tokens, with weights of classes) or examples interact"
        )
    return Noise.of(by_part, squared_sum, size)


def pooled_noise_scale(dataset: xr.Dataset) -> Estimate:
    """The noise scale over the rows of a monitor, (layer,): the mean of V over the mean of U, with its interval.

    Rows count as independent draws of one training phase: choose them by ``dataset.sel(step=slice(first, last))``.
    Fewer than 32 rows have no interval.

    Raises:
        ValueError: no Dataset of a monitor, or rows without numbers.
    """
    check_kind("dataset", dataset, xr.Dataset, "the dataset of a fganalysis.Monitor")
    if not {"example_variance", "squared_mean_gradient"} <= set(dataset.data_vars):
        raise ValueError(
            "dataset must be that of a fganalysis.Monitor, with example_variance and squared_mean_gradient"
        )
    parts = [dataset[name].transpose(..., schema.STEP).values for name in ("example_variance", "squared_mean_gradient")]
    known = np.isfinite(parts[0][0])  # All layers first.
    if not known.any():
        raise ValueError("dataset has no row in which the gradient noise was measured: not_measured says why")
    above, below = (part[:, known] for part in parts)
    return ratio_of_means(above, below).of_few(int(known.sum())).within(0.0, np.inf)


def some_examples(thing: Any, n_examples: int, start: int, length: int) -> Any:
    """A run of examples of inputs or targets; tensors without an axis of examples serve all of them.

    Along the first axis, if it has as many places or a multiple of them, otherwise along the next that has as many.
    """

    def cut(tensor: Tensor) -> Tensor:
        if tensor.ndim and len(tensor) % n_examples == 0 and n_examples not in tensor.shape[1:]:
            each = len(tensor) // n_examples
            return tensor.narrow(0, start * each, length * each)
        if n_examples in tensor.shape:
            return tensor.narrow(tensor.shape.index(n_examples), start, length)
        return tensor

    return replaced(thing, {id(tensor): cut(tensor) for tensor in tensors_in(thing)})


def _squares(by_name: Mapping[str, Tensor], groups: Sequence[Sequence[str]]) -> Tensor:
    """Squared norms over groups of parameters, (group,), summed in double precision."""
    norms = {name: torch.linalg.vector_norm(part, dtype=torch.float64).square() for name, part in by_name.items()}
    zero = next(iter(norms.values())).new_zeros(())
    return torch.stack([sum((norms[name] for name in group if name in norms), zero) for group in groups])
