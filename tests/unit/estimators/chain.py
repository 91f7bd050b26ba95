"""A chain of layers that every estimator takes."""

from __future__ import annotations

import torch

from tests import laws

RELU = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, activation=torch.nn.ReLU, bias=True)

TANH = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, activation=torch.nn.Tanh)
