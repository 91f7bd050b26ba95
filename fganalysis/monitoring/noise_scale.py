"""Gradient noise scale: the batch size at which the noise of a minibatch is as large as the gradient.

    tr Σ / ‖G‖²      Σ: covariance of the gradient of one example, G: its mean over all examples

The batch is cut into K parts of n examples. With G_k the gradient of the loss of part k, S = Σ_k G_k,

    U = (‖S‖² − Σ_k ‖G_k‖²)/(K(K − 1))         E U = ‖G‖²
    V = n ((1/K) Σ_k ‖G_k‖² − U)               E V = tr Σ

and the noise scale is V/U. Its influence values are the jackknife's pseudo-values of V and U, the interval that of a
ratio of means. Source: McCandlish et al. 2018, appendix A; docs/mathematics.md#gradient-noise-scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fganalysis.capturing.batch import called, replaced, tensors_in
from fganalysis.capturing.errors import CannotMeasure
from fganalysis.capturing.tap import Loss
from fganalysis.statistics.intervals import Array, Estimate
from fganalysis.statistics.ratio import ratio_of_means

PARTS = 16  # Each takes a pass of its own: more of them cost more, and say more of tr Σ.
LEAST_PARTS = 4
SAME_SUM = 1e-3  # How far the parts' gradients may add up to another gradient than that of the batch.
ROUNDED = 1e-5  # Of the sum of their norms, which rounding may leave where they cancel.


def moments(total: Array, squared_sum: Array, n_parts: int, size: int) -> tuple[Array, Array]:
    """V and U from Σ_k ‖G_k‖² and ‖S‖². size: examples of a part."""
    squared_mean = (squared_sum - total) / (n_parts * (n_parts - 1))
    return size * (total / n_parts - squared_mean), squared_mean


def noise_scale_of_parts(squares: Array, products: Array, squared_sum: Array, size: int) -> Estimate:
    """V/U from ‖G_k‖² and ⟨G_k, S⟩, (…, part), and ‖S‖², (…); NaN where U is not positive. size: examples of a part."""
    n = squares.shape[-1]
    total, whole = squares.sum(-1, keepdims=True), squared_sum[..., None]
    with_all = moments(total, whole, n, size)
    without = moments(total - squares, whole - 2 * products + squares, n - 1, size)
    above, below = (n * of_all - (n - 1) * of_others for of_all, of_others in zip(with_all, without, strict=True))
    return ratio_of_means(above, below).of_few(n).within(0.0, np.inf)


def gradient_noise_scale(
    network: torch.nn.Module,
    loss_fn: Loss,
    batch: tuple[Any, Any],
    n_examples: int,
    exact: Mapping[str, Tensor],
    layers: Sequence[Sequence[str]],
) -> Estimate:
    """The noise scale of all weights and of some layers, (layer,), all first.

    Args:
        batch: inputs and targets. exact: the gradient of the batch's loss, by parameter. layers: names of parameters.

    Raises:
        CannotMeasure: fewer than 4 examples, or a batch, a loss or a network of which a part is not like the whole.
    """
    n_parts = min(PARTS, n_examples)
    if n_parts < LEAST_PARTS:
        raise CannotMeasure(f"the noise scale takes at least {LEAST_PARTS} examples, got {n_examples}")
    size = n_examples // n_parts
    n_parts = n_examples // size
    wanted = {name: parameter for name, parameter in network.named_parameters() if name in exact}

    def gradient(start: int, length: int) -> dict[str, Tensor]:
        inputs, targets = (some_examples(part, n_examples, start, length) for part in batch)
        with torch.enable_grad():
            loss = loss_fn(called(network, inputs), targets)
            parts = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        return {name: part for name, part in zip(wanted, parts, strict=True) if part is not None}

    whole = {name: n_examples / size * part for name, part in exact.items()}
    if rest := n_examples - n_parts * size:
        for name, part in gradient(n_examples - rest, rest).items():
            whole[name] = whole[name] - rest / size * part
    grouped = [[*exact], *layers]
    scalars = []
    for index in range(n_parts):
        of_part = gradient(index * size, size)
        squares = {name: part.double().square().sum() for name, part in of_part.items()}
        products = {name: (part.double() * whole[name].double()).sum() for name, part in of_part.items()}
        scalars.append(torch.stack([_sums(squares, grouped), _sums(products, grouped)]))
    squares_of_parts, products_of_parts = torch.stack(scalars, dim=-1).cpu().numpy()
    squared_sum = _sums({n: part.double().square().sum() for n, part in whole.items()}, grouped).cpu().numpy()
    off = abs(products_of_parts[0].sum() - squared_sum[0])
    norms = np.sqrt(squares_of_parts[0]).sum() * np.sqrt(squared_sum[0])
    if not off <= SAME_SUM * squared_sum[0] + ROUNDED * norms:
        raise CannotMeasure(
            "the gradients of parts of the batch do not add up to that of the batch, as the loss is no mean over "
            "examples (of unequally many tokens, with weights of classes) or examples interact"
        )
    return noise_scale_of_parts(squares_of_parts, products_of_parts, squared_sum, size)


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


def _sums(by_name: Mapping[str, Tensor], groups: Sequence[Sequence[str]]) -> Tensor:
    """Sums over groups of parameters, (group,)."""
    zero = next(iter(by_name.values())).new_zeros(())
    return torch.stack([sum((by_name[name] for name in group if name in by_name), zero) for group in groups])
