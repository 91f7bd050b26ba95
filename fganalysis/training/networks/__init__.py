"""The networks studied, a file each, initialised from a seed of their own."""

from __future__ import annotations

from fganalysis.training.networks.conv import conv
from fganalysis.training.networks.gpt import gpt
from fganalysis.training.networks.mixer import mixer
from fganalysis.training.networks.mlp import mlp
from fganalysis.training.networks.resnet import resnet

__all__ = ["conv", "gpt", "mixer", "mlp", "resnet"]
