"""measure() on draws of an estimator that sample() knows gives the numbers of sample()."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.estimators import stable_name
from fganalysis.results import schema

NETWORK = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
SNAPSHOT = fga.capture(
    NETWORK,
    torch.nn.functional.cross_entropy,
    torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    torch.arange(6) % 3,
)
TRUTH = dict(zip(SNAPSHOT.layers, SNAPSHOT.weight_gradients, strict=True))


def as_draw(key: str) -> Any:
    """The guesses of an estimator at the weights, from the same generators."""
    estimator = fga.estimators.ESTIMATORS[key]()

    def draw(n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        flat = estimator(SNAPSHOT, n, generator).dense(SNAPSHOT)[1]
        sizes = [gradient.numel() for gradient in TRUTH.values()]
        parts = zip(TRUTH.items(), flat.split(sizes, dim=1), strict=True)
        return {name: part.reshape(n, *gradient.shape) for (name, gradient), part in parts}

    draw.stable_name = stable_name(estimator)  # type: ignore[attr-defined]
    return draw


@pytest.mark.parametrize("key", ["weight", "activity", "upstream"])
def test_the_numbers_are_those_of_sample(key: str) -> None:
    expected = fga.sample(SNAPSHOT, key, n_guesses=1000, seed=3).sel(space="weight")
    measured = fga.measure(as_draw(key), TRUTH, n_guesses=1000, seed=3, generator="torch").sel(space="parameter")
    assert {name for name in expected if name not in measured} == {
        name for name in expected if str(name).startswith("wang2025")
    }
    for name in measured:
        scale = np.nanmax(np.abs(expected[name].values)) if measured[name].dtype.kind == "f" else 1
        np.testing.assert_allclose(
            measured[name].values, expected[name].values, rtol=1e-10, atol=1e-10 * scale, err_msg=str(name)
        )
        assert measured[name].attrs == expected[name].attrs


def test_a_verdict_is_that_on_the_network() -> None:
    on_network = fga.check_unbiased("weight", SNAPSHOT, tolerance=0.2, max_guesses=2**14, seed=1)
    of_draws = fga.check_unbiased(
        as_draw("weight"), fga.truth(TRUTH, generator="torch"), tolerance=0.2, max_guesses=2**14, seed=1
    )
    assert of_draws.outcome == on_network.outcome
    assert of_draws.n_guesses == on_network.n_guesses
    (finding,), (other,) = of_draws.findings, on_network.findings
    assert finding.space == schema.PARAMETER
    assert finding.relative_bias == pytest.approx(other.relative_bias, rel=1e-9)
    assert finding.interval == pytest.approx(other.interval, rel=1e-9)
    assert finding.log_evidence == pytest.approx(other.log_evidence, rel=1e-9)
