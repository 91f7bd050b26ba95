"""What times depend on beside the code."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine(device: str = "cpu") -> str:
    """The processor and how many cores it has, or the name of the graphics card, in words."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        names = [line.partition(":")[2].strip() for line in listed.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"
