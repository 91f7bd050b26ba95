"""Mean and variance of guesses at modules' outputs, exactly, by dense algebra and without sampling.

Let s be all outputs of the chosen modules in one vector, y = B ε a direction of it, ε independent numbers of mean 0,
variance 1 and fourth moment κ, and g_e the gradient of example e's part of the loss by s. A guess with example slopes
is ĝ_i = y_i ⟨g_e(i), y⟩, e(i) the example that s_i belongs to. By the local Jacobians A it makes of a parameter

    Ĝ_p = Σ_i A_pi ĝ_i = εᵀ M_p ε,    M_p = Σ_i A_pi b_i d_iᵀ,    b_i = Bᵀ's column i, d_i = Bᵀ g_e(i)

    E Ĝ_p = tr M_p,    Var Ĝ_p = ‖M_p‖² + tr M_p² + (κ − 3) Σ_j (M_p)_jj²

With batch slopes, or where s_i serves several examples, d_i = Bᵀ Σ_e g_e. B = 1 is activity perturbation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tests.networks.brute_force import example_output_gradients, local_jacobians, outputs
from tests.networks.zoo import Case

SHARED = -1
Moments = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Dense:
    """A case around its parameters: everything that a guess at modules' outputs sees of it.

    ``places`` gives each module's stretch of s, ``jacobians`` by parameter (number of weights, s), ``by_example``
    (example, s), ``owners`` (s,): the example each number belongs to, `SHARED` where it serves several.
    """

    places: dict[str, slice]
    jacobians: dict[str, torch.Tensor]
    by_example: torch.Tensor
    owners: torch.Tensor


def dense(case: Case, names: Sequence[str]) -> Dense:
    """Write out a case's Jacobians and gradients; of a module's outputs the first tensor of each call counts."""
    known = outputs(case.network, case.inputs, names)
    gradients = example_output_gradients(case.network, case.parts, case.inputs, case.targets, names)
    places: dict[str, slice] = {}
    stretches: list[torch.Tensor] = []
    owners: list[torch.Tensor] = []
    starts: dict[str, list[int]] = {}
    length = 0
    for name in names:
        starts[name] = []
        first = length
        for leaves, given in zip(known[name], gradients[name], strict=True):
            starts[name].append(length)
            stretches.append(given[0].detach().flatten(1))
            owners.append(_owners(given[0]).flatten())
            length += leaves[0].numel()
        places[name] = slice(first, length)
    by_example = torch.cat(stretches, 1)
    jacobians: dict[str, torch.Tensor] = {}
    for name in names:
        for parameter, calls in local_jacobians(case.network, case.inputs, name).items():
            size = case.network.get_parameter(parameter).numel()
            matrix = jacobians.setdefault(parameter, torch.zeros(size, length, dtype=by_example.dtype))
            for start, leaves in zip(starts[name], calls, strict=True):
                written = leaves[0].detach().reshape(-1, size)
                matrix[:, start : start + len(written)] += written.T
    return Dense(places, jacobians, by_example, torch.cat(owners))


def moments(known: Dense, slope: str = "example", kurtosis: float = 3.0, mixing: torch.Tensor | None = None) -> Moments:
    """Mean and variance, of each parameter's weights, of a guess; ``mixing`` is B, (s, noise), one if left out."""
    n_numbers = known.by_example.shape[1]
    mixed = torch.eye(n_numbers, dtype=known.by_example.dtype) if mixing is None else mixing
    slopes = known.by_example @ mixed
    batch = slopes.sum(0)
    shared = torch.full_like(known.owners, slope == "batch", dtype=torch.bool) | (known.owners == SHARED)
    read = torch.where(shared[:, None], batch, slopes[known.owners])
    # ‖M_p‖² + tr M_p² as a form in A's row, and M_p's diagonal.
    pairs = (mixed @ mixed.T) * (read @ read.T) + (mixed @ read.T) * (read @ mixed.T)
    diagonals = mixed * read
    found: Moments = {}
    for parameter, jacobian in known.jacobians.items():
        along = jacobian @ diagonals
        variance = ((jacobian @ pairs) * jacobian).sum(1) + (kurtosis - 3) * along.square().sum(1)
        found[parameter] = along.sum(1), variance
    return found


def _owners(gradients: torch.Tensor) -> torch.Tensor:
    """The example of each number of an output, from gradients (example, output's shape …).

    A number that no example's part depends on (behind a ReLU that is off) belongs to the example of its place along the
    axis that tells the examples of all others apart.
    """
    depends = gradients != 0
    owners = depends.int().argmax(0)
    owners[depends.sum(0) > 1] = SHARED
    idle = ~depends.any(0)
    if not idle.any():
        return owners
    for axis, size in enumerate(owners.shape):
        places = torch.arange(size).reshape([-1 if other == axis else 1 for other in range(owners.ndim)])
        if size == len(gradients) and ((owners == places) | idle).all():
            return places.expand(owners.shape)
    raise AssertionError("an output has numbers that the loss does not depend on, and no axis of examples")
