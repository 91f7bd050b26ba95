"""What the study of subspaces measures of a training: mean guesses, parts of the gradient, angles between steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from fganalysis.measuring import subspace
from studies.subspaces.descent import BRANCHES, JACOBIAN_BRANCHES, projected_gradients
from studies.subspaces.figures import progress_of
from studies.subspaces.mean_guesses import beside
from studies.subspaces.sranks import sranks
from studies.subspaces.turning import leading_of_all, turning
from tests.laws import tiny_snapshot
from tests.studies.subspaces.tiny_study import Finished


def test_the_mean_guess_of_the_weights() -> None:
    snapshot = tiny_snapshot((3, 5, 4, 2), n_examples=6)
    found = beside(snapshot, 2)
    inner, square, whole, alone = (np.zeros(4) for _ in range(4))
    for layer, (tap, gradient) in enumerate(zip(snapshot.taps, snapshot.gradients, strict=True)):
        parts = []
        for example, (g, x) in enumerate(zip(gradient.numpy(), tap.inputs.numpy(), strict=True)):
            if layer < 2:
                right = np.linalg.svd(snapshot.upstream[layer].dense()[example].numpy())[2][:2].T
                g = right @ (right.T @ g)
            parts.append(np.outer(g, x))
        guess, truth = np.sum(parts, axis=0), snapshot.weight_gradients[layer].numpy()
        for own, value in zip(
            (inner, square, whole, alone),
            (np.sum(guess * truth), np.sum(guess**2), np.sum(truth**2), np.sum(np.square(parts))),
            strict=True,
        ):
            own[layer] = value
            own[3] += value
    used = [0, 1, 2, 3]
    np.testing.assert_allclose(found["weight_overlap"], (inner**2 / (square * whole))[used], rtol=1e-6)
    np.testing.assert_allclose(found["agreement"], (square / alone)[used], rtol=1e-6)


def test_parts_of_the_gradient(finished: Finished) -> None:
    share = finished.collected["descent_share"]
    for whole in ("whole", "hidden"):
        np.testing.assert_allclose(share.sel(branch=whole), 1)
        np.testing.assert_allclose(progress_of(finished.collected["descent_loss"])[BRANCHES.index(whole)], 1)
    # The Hessian's parts add up to the gradient, each along its own path; the Jacobians' overlap at the weights.
    np.testing.assert_allclose(share.sel(branch="dominant") + share.sel(branch="bulk"), 1, atol=0.02)
    assert bool((share.sel(branch=list(JACOBIAN_BRANCHES)) > 0).all())


def test_all_directions_of_the_row_spaces_hold_the_whole_gradient() -> None:
    snapshot = tiny_snapshot((3, 5, 4, 2), n_examples=6)
    for generator in (None, torch.Generator().manual_seed(0)):
        for found, whole in zip(projected_gradients(snapshot, 4, generator), snapshot.weight_gradients, strict=False):
            np.testing.assert_allclose(found, whole, atol=1e-12)


def test_angles_between_steps() -> None:
    snapshots = [tiny_snapshot((3, 5, 4, 2), n_examples=6, seed=seed) for seed in (0, 1)]
    stacked = snapshots[0].upstream[0].dense().flatten(0, 1)
    between = subspace.principal_angles(leading_of_all(snapshots[0], 0, 2), subspace.modes(stacked).leading(2))
    np.testing.assert_allclose(between, 0, atol=1e-7)
    snapshots[1] = dataclasses.replace(snapshots[1], step=3)
    found = turning(snapshots, 2)
    angle = found["angle"].values
    np.testing.assert_allclose(angle.diagonal(0, 2, 3), 0, atol=1e-5)
    np.testing.assert_allclose(angle, angle.swapaxes(2, 3), atol=1e-5)
    assert float(found["stacked_rank"].min()) >= float(found["single_rank"].min())
    np.testing.assert_allclose(found["random_alignment"], [2 / 5, 2 / 4])
    expected = [subspace.random_alignment(2, 2, units).spread for units in (5, 4)]
    np.testing.assert_allclose(found["random_alignment_spread"], expected)


def test_sranks_of_features_and_weights() -> None:
    snapshots = [tiny_snapshot((3, 5, 4, 2), n_examples=6, seed=seed) for seed in (0, 1)]
    snapshots[1] = dataclasses.replace(snapshots[1], step=3)
    found = sranks(snapshots)
    for step, snapshot in zip((0, 3), snapshots, strict=True):
        for name, tap in zip(found["layer"].values, snapshot.taps, strict=True):
            for matrix, array in (("features", tap.inputs), ("weights", tap.weight)):
                shares = np.linalg.svd(array.numpy(), compute_uv=False).cumsum()
                own = found.sel(matrix=matrix, layer=name)
                assert own["srank"].sel(step=step) == np.searchsorted(shares / shares[-1], 0.99) + 1
                assert own["random_srank"] == subspace.random_srank(*array.shape)
