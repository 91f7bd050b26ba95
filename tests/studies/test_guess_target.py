"""The study of targets and guesses, run whole and tiny; its cells against `LocalLoss`, noise against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.estimators import Backpropagation, LocalLoss
from studies.guess_target import __main__ as guess_target
from studies.guess_target.cells import (
    FROZEN_SEED,
    GUESSES,
    HIDDEN,
    KINDS,
    PROJECTIONS,
    QUANTITIES,
    TARGETS,
    Network,
    Projected,
    Training,
    WithHeads,
    directions,
    ways,
)
from tests import laws

TINY: dict[str, Any] = {
    "seeds": (0, 1),
    "width": 16,
    "mlp_width": 8,
    "cnn_channels": 2,
    "epochs": (1,),
    "batch": 32,
    "guesses": 64,
    "training_seeds": (0, 1),
    "training_epochs": 1,
}
SNAPSHOT = laws.tiny_snapshot((5, 16, 17, 3), n_examples=7, bias=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(folder: Path, **changes: Any) -> xr.DataTree:
    settings = guess_target.Settings(**(TINY | changes), out=folder / "out", page=folder / "page")
    return guess_target.main(settings)


def test_the_study_runs_whole_and_a_second_run_computes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = run(tmp_path)
    page = (tmp_path / "page" / "guess_target.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    for figure in ("cosine", "training"):
        assert f"(guess_target_{figure}.png)" in page
        assert (tmp_path / "page" / f"guess_target_{figure}.png").stat().st_size > 5000
    found, trained = tree["measured"].to_dataset(), tree["trained"].to_dataset()
    assert found["cosine"].sizes["guess"] == len(GUESSES) and found.sizes["step"] == 1
    assert trained.sizes == {"way": 10, "step": 2, "seed": 2}
    for dataset in (found, trained):
        assert all(array.attrs["units"] and array.attrs["long_name"] for array in dataset.values())
    # Everything but noise on weights is a guess at the activations too.
    for name in QUANTITIES:
        missing = found[name].sel(space="activation").isnull().any(["seed", "step", "layer", "target"])
        assert missing.sum() == missing.sel(guess="random", projection="weight") == 1
        assert found[name].sel(space="weight").notnull().all()
    check_the_gradient_and_noise(found)
    cells = sorted((tmp_path / "out" / "cells").iterdir())
    assert len(cells) == 2 + 10 * 2
    written = [cell.stat().st_mtime_ns for cell in cells]
    again = run(tmp_path)
    assert again["measured"].to_dataset().identical(found)
    assert [cell.stat().st_mtime_ns for cell in cells] == written


def check_the_gradient_and_noise(found: xr.Dataset) -> None:
    exact = found.sel(guess="gradient", target="global")
    for name, value in (("cosine", 1), ("efficiency", 1), ("relative_bias", 0), ("shrinkage", 1)):
        np.testing.assert_allclose(exact[name], value, atol=1e-3)
    # Noise on weights is isotropic: 64 guesses of a standard deviation of .75 of the mean, at two seeds.
    noise = found["cosine"].sel(guess="random", target="global", projection="weight", space="weight")
    ratio = (noise / found["isotropic_cosine"]).sel(layer=["0", "2", "4"])
    standard_error = 0.75 / np.sqrt(64)
    assert float(abs(ratio - 1).max()) < 4 * standard_error
    assert float(abs(ratio.mean() - 1)) < 4 * standard_error / np.sqrt(ratio.size)
    # An estimate's cosine is the root of its efficiency where it is not random and not uphill.
    head = found.sel(guess="mlp head", space="weight", layer=HIDDEN)
    np.testing.assert_allclose(head["cosine"] ** 2, head["efficiency"], rtol=1e-4, atol=1e-7)


def trained_heads() -> WithHeads:
    start = WithHeads(tuple(LocalLoss(kind, mode="trained", width=4, rate=0.05) for kind in KINDS))
    return start.initialised(SNAPSHOT).advanced(SNAPSHOT, generator()).advanced(SNAPSHOT, generator())


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_cell_is_the_estimators_guess(projection: Any, target: Any) -> None:
    along = trained_heads()
    known = directions(SNAPSHOT, along)
    for head in along.heads:
        for state, mode, seed in (("head", "trained", 0), ("frozen", "frozen", FROZEN_SEED)):
            expected = LocalLoss(head.head, target, projection, mode, seed=seed, width=4, optimiser=head.optimiser)(
                SNAPSHOT, 2, generator()
            )
            wanted = known["gradient" if target == "global" else f"{head.head} head"]
            assert wanted is not None
            found = Projected(wanted, known[f"{head.head} {state}"], projection)(SNAPSHOT, 2, generator())
            for one, other in zip(found.dense(SNAPSHOT), expected.dense(SNAPSHOT), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_noise_is_projected_on(projection: str) -> None:
    """An estimate of noise is as long as the target's part along it: ⟨ĝ, target⟩ = ‖ĝ‖², tap by tap and by example."""
    target = tuple(
        torch.randn(each.shape, generator=generator(1), dtype=each.dtype) for each in SNAPSHOT.gradients[:-1]
    )
    found = Projected(target, None, projection)(SNAPSHOT, 3, generator())
    rows = found.dense(SNAPSHOT)[1]
    sizes = [tap.weight.numel() for tap in SNAPSHOT.taps]
    if projection == "weight":
        for guess, wanted, tap in zip(rows.split(sizes, 1), target, SNAPSHOT.taps, strict=False):
            torch.testing.assert_close(guess @ (wanted.T @ tap.inputs).flatten(), guess.square().sum(1))
        assert found.dense(SNAPSHOT)[0] is None
    else:
        for guess, wanted in zip(found.guesses, target, strict=False):
            torch.testing.assert_close((guess * wanted).sum(-1), guess.square().sum(-1))
    assert not torch.allclose(rows[0], rows[1], rtol=0.05)
    torch.testing.assert_close(rows[0, -sizes[-1] :], SNAPSHOT.weight_gradients[-1].flatten())


def test_noise_on_live_units_leaves_the_others_out() -> None:
    """In both spaces, and projected in weight space on the weights that the same noise at the activations makes."""
    masks = tuple((torch.rand(g.shape, generator=generator(2)) < 0.5).double() for g in SNAPSHOT.gradients[:-1])
    for projection in PROJECTIONS:
        target = SNAPSHOT.gradients[:-1]
        found = Projected(target, None, projection, masks)(SNAPSHOT, 3, generator())
        for guess, mask in zip(found.guesses, masks, strict=False):
            assert bool((guess[:, mask == 0] == 0).all()) and bool((guess[:, mask == 1] != 0).all())
        inner, squares = found.inner_products(SNAPSHOT)
        row = PROJECTIONS.index(projection)
        torch.testing.assert_close(inner[row], squares[row])
        assert not torch.allclose(found.guesses[0][0], found.guesses[0][1], rtol=0.05)


def test_heads_along_learn_while_the_network_follows_its_gradient() -> None:
    along = trained_heads()
    guesses, exact = along(SNAPSHOT, 1, generator()), Backpropagation()(SNAPSHOT, 1, generator())
    torch.testing.assert_close(guesses.dense(SNAPSHOT)[1], exact.dense(SNAPSHOT)[1], rtol=0, atol=0)
    laws.assert_state_goes_on(WithHeads(tuple(LocalLoss(kind, mode="trained", width=4) for kind in KINDS)), SNAPSHOT)


def test_every_way_of_training_has_an_estimator_of_its_own() -> None:
    found = ways(Training("", seed=3, width=16, mlp_width=8, rate=1e-3, epochs=1))
    assert len({fga.estimators.label(estimator) for estimator in found.values()}) == len(found)
    assert all(not isinstance(one, LocalLoss) or one.seed == 3 for one in found.values())
    assert Network.__dataclass_fields__.keys() >= {"seed", "epochs", "guesses"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (0,)}, "seeds must be at least 2, as intervals are over them, got 1"),
        ({"training_seeds": (1,)}, "training_seeds must be at least 2, as intervals are over them, got 1"),
        ({"guesses": 8}, "guesses must be at least 64, which a bias is estimated from, got 8"),
        ({"epochs": (0,)}, "epochs must hold one of at least 1"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guess_target.Settings(**(TINY | changes))
