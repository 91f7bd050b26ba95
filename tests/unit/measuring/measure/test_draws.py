"""What measure() makes of draws: functions of every kind, and draws that were made before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.results import schema
from tests.unit.measuring.measure.laws import GRADIENT, SQUARE, VARIANCE, one_a_call, tilted, with_numpy, with_torch

ALL = {"space": "parameter", "layer": "all"}


def held(dataset: xr.Dataset, name: str, truth: float, layer: str = "all") -> bool:
    at = dataset.sel(space="parameter", layer=layer)
    return bool(at[name + "_low"] <= truth <= at[name + "_high"])


def test_the_dataset_is_that_of_a_sample_in_one_space() -> None:
    measured = fga.measure(with_numpy, GRADIENT)
    assert measured.space.values.tolist() == ["parameter"]
    assert measured.layer.values.tolist() == ["a", "b", "c", "all"]
    assert measured.sizes["group"] == 64 and measured.attrs["block_size"] == 16
    assert str(measured.estimator.values) == "with_numpy"
    assert float(measured["gradient_norm"].sel(ALL)) == pytest.approx(SQUARE**0.5)
    assert json.loads(measured.attrs["metrics_left_out"]) == ["wang2025_bias", "wang2025_variance"]
    assert measured.attrs["truth"] == "exact" and measured.attrs["generator"] == "numpy"
    assert schema.validate(measured) is measured
    by_layer = measured["squared_norm"].isel(layer=slice(0, 3)).sum("layer")
    np.testing.assert_allclose(by_layer, measured["squared_norm"].sel(layer="all"))


@pytest.mark.parametrize(("draw", "generator"), [(with_numpy, "numpy"), (with_torch, "torch"), (one_a_call, "numpy")])
def test_intervals_hold_the_known_law_whatever_the_library(draw: Any, generator: Any) -> None:
    # With this seed; each interval misses in one of twenty.
    measured = fga.measure(draw, GRADIENT, n_guesses=8192, seed=2, generator=generator)
    assert held(measured, "squared_bias", 0.0)
    assert held(measured, "shrinkage", 1.0)
    assert held(measured, "variance", VARIANCE)
    assert held(measured, "efficiency", SQUARE**2 / (SQUARE * (VARIANCE + SQUARE)))
    assert float(measured["variance_se"].sel(ALL)) < 0.05 * VARIANCE


def test_libraries_agree_within_intervals() -> None:
    one = fga.measure(with_numpy, GRADIENT, seed=1).sel(ALL)
    other = fga.measure(with_torch, GRADIENT, seed=1, generator="torch").sel(ALL)
    for name in ("shrinkage", "variance", "cosine", "efficiency"):
        error = float(np.hypot(one[name + "_se"], other[name + "_se"]))
        assert abs(float(one[name] - other[name])) < 3.5 * error
        assert error < 0.1 * float(one[name])  # So a difference of a third is seen.


def test_a_bias_is_found_with_its_size() -> None:
    measured = fga.measure(tilted, GRADIENT, n_guesses=2**14)
    assert held(measured, "bias", 0.5) and held(measured, "bias", 0.5, "a")
    assert float(measured["bias_low"].sel(ALL)) > 0.2
    assert float(measured["bias_low"].sel(space="parameter", layer="b")) == 0


def test_a_longer_run_begins_with_a_shorter_one_and_another_seed_gives_other_numbers() -> None:
    short, long = (fga.measure(with_numpy, GRADIENT, n_guesses=n)["squared_norm"].values for n in (100, 200))
    np.testing.assert_array_equal(short, long[..., :100])
    assert not np.allclose(short, fga.measure(with_numpy, GRADIENT, n_guesses=100, seed=1)["squared_norm"])


class OnlyDlpack:
    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __dlpack__(self, **words: Any) -> Any:
        return self.tensor.__dlpack__(**words)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


class OnlyArray:
    def __init__(self, array: np.ndarray):
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array


def test_arrays_of_any_library_will_do() -> None:
    expected = fga.measure(with_numpy, GRADIENT, n_guesses=64)
    for wrap in (OnlyArray, lambda array: OnlyDlpack(torch.from_numpy(np.array(array))), torch.as_tensor):

        def draw(n: int, generator: np.random.Generator, wrap: Any = wrap) -> dict[str, Any]:
            return {name: wrap(part) for name, part in with_numpy(n, generator).items()}

        draw.stable_name = with_numpy.__qualname__  # type: ignore[attr-defined]
        truth = {name: wrap(part) for name, part in GRADIENT.items()}
        np.testing.assert_array_equal(fga.measure(draw, truth, n_guesses=64)["gram"], expected["gram"])


def test_numbers_of_single_precision_have_its_rounding_errors() -> None:
    def constant(n: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        return {"a": np.tile(np.float32([1.0, 2.0]), (n, 1))}

    measured = fga.measure(constant, {"a": np.array([1.0, 2.0])}, n_guesses=64)
    assert float(measured["bias"].sel(ALL)) == 0
    assert 1e-7 < float(measured["bias_high"].sel(ALL)) < 1e-4


def parts(sizes: list[int]) -> Iterator[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    for size in sizes:
        yield with_numpy(size, generator)


def test_draws_made_before_are_dealt_like_those_of_a_function_whatever_their_parts() -> None:
    whole = next(parts([1000]))
    expected = fga.measure(whole, GRADIENT, n_guesses=1000)
    pieces = [
        {name: part[start:stop] for name, part in whole.items()} for start, stop in ((0, 7), (7, 400), (400, 1000))
    ]
    single = [{name: part[guess] for name, part in whole.items()} for guess in range(1000)]
    for made in (pieces, iter(pieces), single):
        np.testing.assert_array_equal(fga.measure(made, GRADIENT, n_guesses=1000)["gram"], expected["gram"])
    assert held(expected, "variance", VARIANCE)
    assert str(expected.estimator.values) == "draws"


def test_draws_made_before_are_held_a_part_at_a_time() -> None:
    read: list[int] = []

    def counted() -> Iterator[dict[str, np.ndarray]]:
        for number, part in enumerate(parts([32] * 1000)):
            read.append(number)
            yield part

    fga.measure(counted(), GRADIENT, n_guesses=320)
    assert len(read) == 10


def test_where_memory_is_short_there_are_fewer_groups() -> None:
    large = {"a": np.ones(10_000)}

    def draw(n: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        return {"a": generator.standard_normal((n, 10_000))}

    measured = fga.measure(draw, large, n_guesses=1024, memory=12 * 2**20)
    assert 8 <= measured.sizes["group"] < 64
    assert "fewer_groups" in measured.attrs
    with pytest.raises(ValueError, match="memory must be at least"):
        fga.measure(draw, large, n_guesses=1024, memory=2**20)


def test_tables_take_the_result() -> None:
    measured = fga.measure(with_numpy, GRADIENT)
    predicted = xr.full_like(measured[["variance", "shrinkage"]], np.nan)
    predicted["variance"].loc[ALL] = VARIANCE
    for name in set(fga.schema.QUANTITIES) & set(measured) - set(predicted):
        predicted[name] = xr.full_like(measured[name], np.nan)
    tree = xr.DataTree.from_dict({"measured": measured, "predicted": predicted})
    table = fga.summary(tree, ["variance", "shrinkage"])
    assert table["space"].unique().tolist() == ["parameter"] and len(table) == 4
    (row,) = fga.agreement(tree).to_dict("records")
    assert row["quantity"] == "variance" and row["largest |z|"] < 3.5
    assert fga.plotting.bias_variance(tree, space="parameter") is not None
    with pytest.raises(ValueError, match="space must be 'parameter', got 'weight'"):
        fga.plotting.bias_variance(tree)


def test_verdicts_on_draws() -> None:
    truth = fga.truth(GRADIENT)
    assert fga.testing.assert_unbiased(with_numpy, truth, tolerance=0.1).outcome == "unbiased"
    verdict = fga.check_unbiased(tilted, truth)
    assert verdict.outcome == "biased"
    assert "in parameter space" in str(verdict) and "entry 0 of layer 'a'" in str(verdict)
    with pytest.raises(AssertionError, match="tilted is biased"):
        fga.testing.assert_unbiased(tilted, truth)


def test_what_two_guesses_of_a_call_share_is_the_part_between() -> None:
    """A shared part of variance 1 on each of two entries, and 4 on each of them apart."""

    def draw(n: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        return {"a": 1.0 + generator.standard_normal((1, 2)) + 2 * generator.standard_normal((n, 2))}

    generator = torch.Generator().manual_seed(0)
    measured = fga.variance_parts(draw, fga.truth({"a": np.ones(2)}), 4000, generator)
    assert measured.within.value.shape == (1, 2)
    for part, expected in ((measured.within, 8.0), (measured.between, 2.0)):
        assert part.low[0, -1] < expected < part.high[0, -1]
        assert part.high[0, -1] - part.low[0, -1] < 0.25 * 8


def test_a_draw_may_differentiate() -> None:
    def draw(n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
        noise = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((weight**2).sum(), weight)
        return {"a": (noise @ gradient)[:, None] * noise}

    measured = fga.measure(draw, {"a": 2 * np.ones(3)}, generator="torch")
    assert held(measured, "bias", 0.0) and held(measured, "variance", 4 * 12)
    assert fga.check_unbiased(draw, fga.truth({"a": 2 * np.ones(3)}, generator="torch")).outcome == "unbiased"
