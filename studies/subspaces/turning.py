"""How far the leading subspaces of gradients and Jacobians turn from one step of a training to another."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from scipy import linalg
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring import subspace
from fganalysis.measuring.gradient_stream import StreamingSubspace

DRAWN_PAIRS = 32  # of random subspaces, whose mean angle has no closed form; it then is known to a quarter degree
TURNING = ("activation_gradient", "upstream_jacobian")


def turning(snapshots: list[Snapshot], k: int) -> xr.Dataset:
    """Angles between the leading subspaces of all pairs of steps, hidden layers only, and ranks of stacked gradients.

    angle: mean of the k principal angles, degrees. alignment: their mean squared cosine, beside a random subspace's.
    Gradients are stacked over the steps with the same norm each: the loss falls, and the first steps would be all.
    """
    layers = snapshots[0].layers[:-1]
    steps = [one.step for one in snapshots]
    shape = (len(TURNING), len(layers), len(steps), len(steps))
    angle, alignment = np.empty(shape), np.empty(shape)
    drawn, stacked, single = (np.empty(len(layers)) for _ in range(3))
    random = [subspace.random_alignment(k, k, tap.units) for tap in snapshots[0].taps[:-1]]
    generator = torch.Generator().manual_seed(0)
    for layer in range(len(layers)):
        units = snapshots[0].taps[layer].units
        gradients = [one.gradients[layer] / one.gradients[layer].norm() for one in snapshots]
        spectra = [subspace.modes(gradient) for gradient in gradients]
        bases = (
            torch.stack([one.leading(k) for one in spectra]),
            torch.stack([leading_of_all(one, layer, k) for one in snapshots]),
        )
        for matrix, basis in enumerate(bases):
            angles = subspace.principal_angles(basis[:, None], basis[None, :]).cpu()
            angle[matrix, layer] = angles.rad2deg().mean(-1)
            alignment[matrix, layer] = angles.cos().square().mean(-1)
        pairs = torch.linalg.qr(torch.randn(2, DRAWN_PAIRS, units, k, generator=generator, dtype=torch.float64))[0]
        drawn[layer] = subspace.principal_angles(pairs[0], pairs[1]).rad2deg().mean()
        whole = StreamingSubspace.of(gradients[0])
        for gradient in gradients[1:]:
            whole = whole.add(gradient)
        stacked[layer] = float(subspace.entropy_rank(whole.modes().values))
        single[layer] = np.mean([float(subspace.entropy_rank(one.values)) for one in spectra])
    grid = ("matrix", "layer", "step", "other_step")
    return xr.Dataset(
        {
            "angle": (grid, angle, {"units": "degrees", "long_name": f"mean of {k} principal angles"}),
            "alignment": (grid, alignment, {"units": "1", "long_name": "mean squared cosine of the principal angles"}),
            "random_angle": ("layer", drawn, {"units": "degrees", "long_name": "angle of random subspaces, drawn"}),
            "random_alignment": (
                "layer",
                [float(one.mean) for one in random],
                {"units": "1", "long_name": "the same for a random subspace"},
            ),
            "random_alignment_spread": (
                "layer",
                [float(one.spread) for one in random],
                {"units": "1", "long_name": "standard deviation of that of a random subspace"},
            ),
            "stacked_rank": ("layer", stacked, {"units": "1", "long_name": "entropy rank of all steps' gradients"}),
            "single_rank": ("layer", single, {"units": "1", "long_name": "entropy rank of a step's, mean over steps"}),
        },
        coords={"matrix": list(TURNING), "layer": list(layers), "step": steps, "other_step": steps},
    )


def leading_of_all(snapshot: Snapshot, layer: int, k: int) -> Tensor:
    """The k directions (unit, k) of a layer that all examples' Jacobians stacked answer to most, by LAPACK.

    They are eigenvectors of Σ_b J_bᵀJ_b = (WᵀW) ∘ (DᵀD) for J_b = W diag(d_b), D the rows d_b.
    """
    jacobian = snapshot.upstream[layer]
    weight, derivative = jacobian.weight.double(), jacobian.derivative.double()
    gram = (weight.T @ weight) * (derivative.T @ derivative)
    leading = (len(gram) - k, len(gram) - 1)
    return torch.from_numpy(linalg.eigh(gram.cpu().numpy(), subset_by_index=leading)[1]).to(gram)
