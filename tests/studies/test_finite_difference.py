"""The study of finite differences, run whole on small networks; what its predictions are made of, by other routes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import integrate, stats

import fganalysis as fga
from studies.finite_difference import __main__ as finite_difference
from studies.finite_difference import loss_along
from studies.finite_difference.cells import Network, _kinks, _snapshot
from theory import finite_difference as theory

TINY = {"width": 8, "batch": 8, "draws": 64, "seeds": (0, 1), "smallest": -34}
SMALL = Network("tanh", 0, 3, 5, 8, (-4,), -4, -4)


def run(folder: Path, **changes: int) -> xr.Dataset:
    settings = finite_difference.Settings(**(TINY | changes), out=folder / "out", page=folder / "page")
    return finite_difference.main(settings)


def test_measured_meets_predicted_and_a_second_run_computes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = run(tmp_path)
    page = (tmp_path / "page" / "finite_difference.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert (tmp_path / "page" / "finite_difference_error.png").stat().st_size > 5000
    assert all(array.attrs["units"] and array.attrs["long_name"] for array in dataset.values())
    # Each is a root mean square over 64 directions with heavy tails; a wrong order would be off by 2⁷ over this range.
    smooth = dataset.sel(activation="tanh", dtype="float64", epsilon=slice(2.0**-12, 2.0**-6))
    ratio = smooth["slope_error"] / smooth["slope_error_predicted"]
    assert float(ratio.min()) > 1 / 2 and float(ratio.max()) < 2
    for scheme, order in (("one-sided", 1), ("central", 2)):
        logs = np.log2(smooth["slope_error"].sel(scheme=scheme).transpose("epsilon", "seed").to_numpy())
        assert np.abs(np.polyfit(np.log2(smooth["epsilon"]), logs, 1)[0] - order).max() < 0.3
    # Rounding: below the best ε errors rise as 1/ε to the height predicted from two precisions, or by their ratio.
    for dtype, exponent in (("float32", -18), ("float64", -32)):
        own = dataset.sel(activation="tanh", dtype=dtype, epsilon=2.0**exponent)
        ratio = own["slope_error"] / own["slope_error_predicted"]
        assert float(ratio.min()) > 1 / 3 and float(ratio.max()) < 3
    best = abs(np.log2(dataset["best_epsilon"] / dataset["best_epsilon_predicted"])).sel(activation="tanh")
    assert float(best.max()) < 2
    cells = sorted((tmp_path / "out" / "cells").iterdir())
    written = [cell.stat().st_mtime_ns for cell in cells]
    assert len(cells) == 4
    assert run(tmp_path).identical(dataset)
    assert [cell.stat().st_mtime_ns for cell in cells] == written


def test_losses_along_directions_are_those_of_moved_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    network = fga.networks.mlp([2, 3, 2], bias=False, seed=0, activation=torch.nn.Tanh, dtype=torch.float64)
    inputs = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.tensor([0, 1, 1, 0]))
    first, second = (torch.randn(6, *tap.weight.shape, generator=generator).double() for tap in snapshot.taps)
    moved = loss_along.losses(snapshot, [first, second], 0.25)
    weights = [tap.weight for tap in snapshot.taps]
    outputs = [
        torch.tanh(inputs @ (weights[0] + z / 4).T) @ (weights[1] + y / 4).T for z, y in zip(first, second, strict=True)
    ]
    expected = [torch.nn.functional.cross_entropy(output, snapshot.targets) for output in outputs]
    torch.testing.assert_close(moved, torch.stack(expected))


def test_the_loss_along_a_direction_refuses_biases() -> None:
    network = fga.networks.mlp([2, 2], seed=0)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="networks without biases"):
        loss_along.losses(snapshot, [torch.zeros(1, 2, 3)], 0.1)


@pytest.mark.parametrize("epsilon", [0.2, 0.5, 4.0])
def test_kink_errors_of_one_unit_are_integrals(epsilon: float) -> None:
    """One kink, jump 2, distance 0.7, approached at rate m ~ N(0, 1.5²): x = 2(m − 0.7/ε) beyond it, by quadrature."""
    distance, spread, jump = 0.7, 1.5, 2.0

    def moment(power: int) -> float:
        law = stats.norm(scale=spread)
        start = distance / epsilon
        return integrate.quad(lambda m: (jump * (m - start)) ** power * law.pdf(m), start, start + 12 * spread)[0]

    one = [np.array([value]) for value in (distance, spread, jump)]
    square = moment(2)
    np.testing.assert_allclose(theory.kink_error(epsilon, *one, central=False) ** 2, square, rtol=1e-6)
    np.testing.assert_allclose(theory.kink_error(epsilon, *one, central=True) ** 2, square / 2, rtol=1e-6)
    # Two independent ones: squares add, and twice the product of the means with them.
    two = [np.repeat(value, 2) for value in one]
    both = 2 * square + 2 * moment(1) ** 2
    np.testing.assert_allclose(theory.kink_error(epsilon, *two, central=False) ** 2, both, rtol=1e-6)
    np.testing.assert_allclose(theory.kink_error(epsilon, *two, central=True) ** 2, square, rtol=1e-6)


def test_many_kinks_make_the_error_a_square_root_of_epsilon() -> None:
    distances = (np.arange(100_000) + 0.5) / 100_000
    ones = np.full_like(distances, 0.01)
    errors = theory.kink_error(np.array([1e-3, 1e-2]), distances, np.ones_like(distances), ones, central=True)
    assert np.log10(errors[1] / errors[0]) == pytest.approx(0.5, abs=0.01)


def test_spreads_and_jumps_of_units_against_finite_steps() -> None:
    """Variances of pre-activations' rates along z by Jacobians of each unit, and the loss's slope along a unit."""
    snapshot = _snapshot(Network("relu", 0, 3, 5, 8, (-4,), -4, -4), torch.float64)
    distances, spreads, jumps = _kinks(snapshot)
    weights = {f"{tap.name}.weight": tap.weight for tap in snapshot.taps}
    per_tap = [part.reshape(5, 3) for part in np.split(spreads, 3)]
    for index, tap in enumerate(snapshot.taps[:-1]):
        part = snapshot.network[: 2 * index + 1]
        kept = {name: weight for name, weight in weights.items() if int(name.split(".")[0]) <= 2 * index}

        def outputs(own: dict[str, torch.Tensor], part: torch.nn.Module = part) -> torch.Tensor:
            return torch.func.functional_call(part, own, (snapshot.inputs,))

        jacobians = torch.func.jacrev(outputs)(kept)
        variances = sum(jacobian.square().sum((2, 3)) for jacobian in jacobians.values())
        np.testing.assert_allclose(per_tap[index], variances.sqrt().numpy(), rtol=1e-9)
        np.testing.assert_allclose(np.split(distances, 3)[index], tap.outputs.abs().flatten())
        # Behind the unit: ∂L/∂h, of which the gradient at a live unit is the same and at a dead one nothing.
        slopes = torch.from_numpy(np.split(jumps, 3)[index].reshape(5, 3))
        torch.testing.assert_close(slopes * (tap.outputs > 0), snapshot.gradients[index])
    assert [len(found) for found in _kinks(_snapshot(SMALL, torch.float64))] == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activations": ("sine",)}, "activations has the unknown name 'sine'; known ones: tanh, relu"),
        ({"seeds": (0,)}, "seeds must be at least 2"),
        ({"smallest_float32": -3}, "largest must be at least 10 above the smallest, got 0"),
    ],
)
def test_bad_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finite_difference.Settings(**change)
