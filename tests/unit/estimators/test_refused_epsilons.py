"""An ε that is no step, or with which losses underflow or overflow, is refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import fganalysis as fga
from fganalysis.estimators import FiniteDifference
from tests import laws
from tests.unit.estimators.losses_of_weights import single_precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-83, 83])
def test_refusals_and_guesses_do_not_depend_on_the_scale_of_the_loss(exponent: int, dtype: torch.dtype) -> None:
    plain = single_precision(dtype=dtype)
    factor = 2.0**exponent
    scaled = single_precision(lambda o, t: factor * nn.functional.mse_loss(o, t), dtype)
    guesses = [FiniteDifference()(snapshot, 4, torch.Generator().manual_seed(0)) for snapshot in (plain, scaled)]
    assert torch.equal(guesses[1].coefficients, factor * guesses[0].coefficients)
    tiny = 3e-9 if dtype == torch.float32 else 3e-18
    for epsilon in (tiny, 1e-30, 1e200 if dtype == torch.float64 else 1e30):
        for central in (False, True):
            messages = []
            for snapshot in (plain, scaled):
                with pytest.raises(ValueError, match=r"^epsilon=") as caught:
                    FiniteDifference(epsilon, central)(snapshot, 1, torch.Generator().manual_seed(0))
                messages.append(str(caught.value))
            assert messages[0] == messages[1]


def test_named_laws_hold() -> None:
    snapshot = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, bias=True)
    forward = laws.tiny_snapshot((3, 4, 3, 2), 3, bias=True, autodiff="forward")
    for estimator in (FiniteDifference(), FiniteDifference(central=False)):
        laws.assert_seeded(estimator, snapshot)
        laws.assert_modes_agree(estimator, snapshot, forward)
        laws.assert_equivariant_under_loss_scaling(estimator, snapshot)


@pytest.mark.parametrize("epsilon", [0.0, -1e-3, float("inf"), float("nan")])
def test_an_epsilon_that_is_no_step_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon must be a finite number above 0"):
        FiniteDifference(epsilon)


@pytest.mark.parametrize("central", [False, True])
def test_an_epsilon_that_underflows_is_refused_in_one_sentence(central: bool) -> None:
    for epsilon, message in ((1e-30, "underflows: no weight changes"), (3e-9, "is too small: the losses differ by")):
        with pytest.raises(ValueError, match=message) as caught:
            FiniteDifference(epsilon, central)(single_precision(), 1, torch.Generator().manual_seed(0))
        assert "\n" not in str(caught.value) and "float32" in str(caught.value)


@pytest.mark.parametrize("central", [False, True])
def test_an_epsilon_that_overflows_is_refused_and_ends_a_run(central: bool, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot, estimator = single_precision(), FiniteDifference(1e30, central)
    message = "epsilon=1e+30 is too large: a loss at moved weights is not finite"
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        estimator(snapshot, 2, torch.Generator().manual_seed(0))
    data = fga.datasets.Dataset(snapshot.inputs, snapshot.targets, snapshot.inputs, snapshot.targets)
    run = fga.train(snapshot.network, data, estimator, loss_fn=snapshot.loss_fn, epochs=1)
    assert run.log.sizes["step"] == 1 and message in "".join(capsys.readouterr())
    for trained, before in zip(run.network.parameters(), snapshot.network.parameters(), strict=True):
        assert torch.equal(trained, before)
