"""A monitor of gradient estimates for anyone's training loop, and adapters for trainers and loggers."""

from __future__ import annotations

from fganalysis.monitoring.adapters import lightning_callback as lightning_callback
from fganalysis.monitoring.adapters import transformers_callback as transformers_callback
from fganalysis.monitoring.adapters import write_scalars as write_scalars
from fganalysis.monitoring.noise_scale import pooled_noise_scale as pooled_noise_scale
