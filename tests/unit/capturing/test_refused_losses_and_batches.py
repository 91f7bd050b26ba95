"""Losses, arguments and batches that cannot be measured end in one sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fganalysis as fga
from fganalysis.capturing.errors import CannotMeasure
from tests.unit.capturing.small_networks import (
    EXAMPLES,
    batch,
    mlp,
)


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    z = F.normalize(outputs, dim=1)
    return F.cross_entropy(z @ z.T - 1e9 * torch.eye(len(z)), targets)


X, Y = batch()
BAD_LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], object], Tensor, str]] = {
    "contrastive": (contrastive, torch.arange(EXAMPLES).roll(1), "works on the batch of 16 but fails on"),
    "NaN targets": (F.mse_loss, torch.full((EXAMPLES, 4), float("nan")), "the loss is nan on this batch"),
    "shapes": (F.mse_loss, torch.randn(EXAMPLES, 3), r"loss_fn fails on outputs of shape \(16, 4\) and float32"),
    "integers": (lambda o, t: F.binary_cross_entropy(o[:, 0], t), Y % 2, "loss_fn fails on outputs"),
    "a number": (lambda o, t: 1.0, Y, "must return a tensor of one number, got 1.0"),
    "an argmax": (lambda o, t: o.argmax(1).float().mean(), Y, "the loss has no gradient"),
    "no gradient": (lambda o, t: o.sum() * 0, Y, "the gradient is zero at every tap"),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", BAD_LOSSES)
def test_a_refused_loss_is_refused_for_its_own_cause(name: str) -> None:
    loss_fn, targets, message = BAD_LOSSES[name]
    with pytest.raises(CannotMeasure, match=message) as caught:
        fga.capture(mlp(8, 16, 4), loss_fn, X, targets)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_outputs_with_a_column_against_targets_without_are_named() -> None:
    with pytest.warns(UserWarning), pytest.raises(CannotMeasure, match=r"give targets\.unsqueeze\(1\)"):
        fga.capture(mlp(8, 16, 1), F.mse_loss, X, torch.arange(EXAMPLES).float())


NOTHING = [None, 3, "text", 1.5, [], {}, object(), int, np.ones((4, 8))]


@pytest.mark.parametrize("place", ["network", "loss_fn", "inputs", "targets", "autodiff", "step"])
@pytest.mark.parametrize("value", NOTHING, ids=lambda value: type(value).__name__)
def test_every_argument_of_another_kind_is_one_sentence(place: str, value: object) -> None:
    arguments: dict[str, object] = {"network": mlp(8, 4), "loss_fn": F.cross_entropy, "inputs": X, "targets": Y}
    arguments |= {"autodiff": "reverse", "step": 0, place: value}
    if place == "step" and isinstance(value, int):
        assert fga.capture(**arguments).step == 3  # type: ignore[arg-type]
        return
    with pytest.raises(ValueError, match=f"^{place} must .*, got ") as caught:
        fga.capture(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


BAD_BATCHES = {
    "too few inputs": (X[:, :3], Y),
    "one dimension more": (X[None].expand(EXAMPLES, -1, -1), Y),
    "whole numbers": (X.long(), Y),
    "half precision": (X.half(), Y),
    "no dimension": (torch.tensor(1.0), Y),
    "meta": (X.to("meta"), Y.to("meta")),
    "sparse": (X.to_sparse(), Y),
    "NaN": (torch.full_like(X, float("nan")), Y),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_every_bad_batch_is_one_sentence_of_ours(name: str) -> None:
    x, y = BAD_BATCHES[name]
    with pytest.raises(CannotMeasure) as caught:
        fga.capture(mlp(8, 16, 4), F.cross_entropy, x, y)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_what_is_no_direction_and_what_is_wrapped_are_refused() -> None:
    snapshot = fga.capture(mlp(8, 16, 4), F.cross_entropy, *batch())
    for call in (snapshot.slopes, snapshot.weight_slopes):
        for wrong in (3, None, [torch.ones(1)], [torch.ones(2, 3, 3)] * 2, "text"):
            with pytest.raises(ValueError, match="directions must be a tensor"):
                call(wrong)  # type: ignore[arg-type]
    with pytest.raises(CannotMeasure, match=r"give the module inside, network\.module"):
        fga.capture(nn.DataParallel(mlp(8, 4)), F.cross_entropy, *batch())
    with pytest.raises(ValueError, match="step must be a whole number from 0 to"):
        fga.capture(mlp(8, 4), F.cross_entropy, *batch(), step=2**70)


def test_a_capture_imports_no_compiler() -> None:
    """It would take seconds of every process that captures a network."""
    code = (
        "import sys, torch, fganalysis as fga\n"
        "x = torch.randn(4, 3)\n"
        "fga.capture(torch.nn.Linear(3, 2), torch.nn.functional.mse_loss, x, torch.randn(4, 2))\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
