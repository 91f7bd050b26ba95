"""Contexts without what changes the numbers: the caller's autocast, inference mode and rounding of matrix products.

A GPU multiplies single-precision matrices with operands rounded to 10 bits (TF32), convolutions by default, and a CPU
to 7 bits (bfloat16), wherever torch's settings allow it. The error, 1e-3 of a product, would look like a bias.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from fganalysis.capturing.attention import unfused_attention
from fganalysis.capturing.reference import Reference

# Norms of vectors whose squares and products single precision sums without loss: what is below 2⁻¹²⁶ and counts as zero
# is then too little to matter among 2³⁰ terms, and no sum exceeds 2¹²⁷.
SHORTEST, LONGEST = 2.0**-36, 2.0**60


@contextmanager
def full_precision(reference: Reference) -> Iterator[None]:
    """A context without the caller's `torch.autocast` and rounding, so that guesses have the gradient's precision."""
    with torch.autocast(reference.device.type, enabled=False), EXACT_PRODUCTS():
        yield


@contextmanager
def plainly(device: torch.device) -> Iterator[None]:
    """A context without the caller's autocast, inference mode, rounding and fused attention."""
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False), EXACT_PRODUCTS(), unfused_attention():
        yield


class _ExactProducts:
    """A context in which matrix products and convolutions round their operands to no less than their own precision.

    torch's settings are those of the process: they are changed when the first thread enters and put back when the last
    one leaves. A setting that follows a more general one is put back to the value that it followed.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._put_back: list[Callable[[], None]] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._put_back = _round_nothing()
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    for put_back in self._put_back:
                        put_back()


EXACT_PRODUCTS = _ExactProducts()


def _round_nothing() -> list[Callable[[], None]]:
    """Sets the precision of every kind of product, and returns what puts the settings back."""
    backends: Any = torch.backends
    matmul = backends.cuda.matmul
    put_back: list[Callable[[], None]] = []
    # Older settings, such as allow_tf32, follow from these where they are not set, and are left as they are.
    products = (backends.cudnn.conv, backends.cudnn.rnn, matmul)
    for place in (*products, backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul):
        put_back.append(partial(setattr, place, "fp32_precision", place.fp32_precision))
        place.fp32_precision = "ieee"
    for half in ("fp16", "bf16"):  # Sums of products of half precision, in parts of a network that compute in it.
        name = f"allow_{half}_reduced_precision_reduction"
        put_back.append(partial(setattr, matmul, name, (getattr(matmul, name), getattr(matmul, f"{name}_split_k"))))
        setattr(matmul, name, (False, False))
    put_back.append(partial(setattr, matmul, "allow_fp16_accumulation", matmul.allow_fp16_accumulation))
    matmul.allow_fp16_accumulation = False
    return put_back
