"""Matrix products round their operands to no less than their own precision while anything is measured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.precision import full_precision, plainly
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import ActivationEstimates
from tests.laws import tiny_snapshot

BACKENDS: Any = torch.backends
CPU = torch.device("cpu")


def settings() -> dict[str, Any]:
    """What torch allows, by the name of the setting."""
    matmul = BACKENDS.cuda.matmul
    places = {"matmul": matmul, "conv": BACKENDS.cudnn.conv, "rnn": BACKENDS.cudnn.rnn}
    places |= {f"cpu {name}": getattr(BACKENDS.mkldnn, name) for name in ("matmul", "conv", "rnn")}
    found: dict[str, Any] = {name: place.fp32_precision for name, place in places.items()}
    for half in ("fp16", "bf16"):
        for part in ("reduced_precision_reduction", "reduced_precision_reduction_split_k"):
            found[f"{half} {part}"] = getattr(matmul, f"allow_{half}_{part}")
    return found | {"fp16 accumulation": matmul.allow_fp16_accumulation}


EXACT = {name: False if isinstance(value, bool) else "ieee" for name, value in settings().items()}


def allow_everything() -> None:
    torch.set_float32_matmul_precision("medium")
    BACKENDS.cudnn.allow_tf32 = True
    BACKENDS.cuda.matmul.allow_fp16_accumulation = True


def allow_by_the_newer_settings() -> None:
    for place in (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn):
        place.fp32_precision = "tf32"
    BACKENDS.mkldnn.matmul.fp32_precision = "bf16"


@pytest.fixture(params=[lambda: None, allow_everything, allow_by_the_newer_settings], ids=["default", "old", "new"])
def before(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The settings of a caller, which are put back afterwards."""
    request.param()
    yield settings()
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for place in (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul):
        place.fp32_precision = "none"
    BACKENDS.cuda.matmul.allow_fp16_accumulation = False


def test_nothing_is_rounded_inside_and_the_settings_are_put_back(before: dict[str, Any]) -> None:
    with plainly(CPU):
        assert settings() == EXACT
        with full_precision(tiny_snapshot()):
            assert settings() == EXACT
        assert settings() == EXACT
    assert settings() == before
    with pytest.raises(KeyError), plainly(CPU):
        raise KeyError
    assert settings() == before


def test_a_thread_that_leaves_does_not_change_the_settings_of_those_inside(before: dict[str, Any]) -> None:
    inside, left = threading.Event(), threading.Event()

    def enter_and_leave() -> None:
        with plainly(CPU):
            inside.set()
            left.wait()

    thread = threading.Thread(target=enter_and_leave)
    thread.start()
    inside.wait()
    with plainly(CPU):
        left.set()
        thread.join()
        assert settings() == EXACT
    assert settings() == before


class Seen:
    """A guess of zero that keeps the settings that it is made under."""

    def __init__(self) -> None:
        self.settings: list[dict[str, Any]] = []

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        self.settings.append(settings())
        return ActivationEstimates(tuple(torch.zeros(n_guesses, *tap.outputs.shape).double() for tap in snapshot.taps))


MEASURED: list[Callable[[Snapshot, Any], object]] = [
    lambda snapshot, estimator: fga.sample(snapshot, estimator, 64, workers=2, block_size=1),
    lambda snapshot, estimator: fga.check_unbiased(estimator, snapshot, max_guesses=2048),
]


@pytest.mark.parametrize("measured", MEASURED, ids=["sample", "check_unbiased"])
def test_guesses_are_made_so(measured: Callable[[Snapshot, Any], object], before: dict[str, Any]) -> None:
    estimator = Seen()
    measured(tiny_snapshot(), estimator)
    assert estimator.settings and all(seen == EXACT for seen in estimator.settings)
    assert settings() == before


def test_the_gradient_is_taken_so(before: dict[str, Any]) -> None:
    seen: list[dict[str, Any]] = []

    def loss_fn(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(settings())
        return torch.nn.functional.cross_entropy(outputs, targets)

    snapshot = tiny_snapshot()
    fga.capture(snapshot.network, loss_fn, snapshot.inputs, snapshot.targets)
    assert seen and all(found == EXACT for found in seen)
    assert settings() == before
