"""Networks small enough that every estimator gets a verdict on them in seconds."""

from __future__ import annotations

import torch

from tests.laws import tiny_snapshot

SNAPSHOT = tiny_snapshot((3, 4, 4, 3), n_examples=4, activation=torch.nn.Softplus)
RELU = tiny_snapshot((4, 6, 6, 3), n_examples=4, activation=torch.nn.ReLU, seed=1)
