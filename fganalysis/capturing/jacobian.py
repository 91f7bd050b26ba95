"""Upstream Jacobians on any graph: J_l,e = ∂s_next,e/∂s_l,e for each example, as products.

The next tap is the next one downstream, and J is the total derivative through everything between, skip paths included
(docs/mathematics.md#rows). Where elementwise functions alone stand before a Linear module it is W diag(φ'), a kernel.
Elsewhere a product with Jᵀ is a backward pass through that part of the graph, of many vectors at once; a product with J
is a backward pass through that backward pass, as Jᵀu is linear in u.

A vector at a tap is (…, row, unit); of an example it is flattened to (…, example, number).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fganalysis.arguments import check_flag
from fganalysis.capturing.pulling import Pull
from fganalysis.capturing.tap import Tap
from fganalysis.capturing.upstream import START_SEED, UpstreamJacobian

WRITTEN_OUT = 2**26  # Numbers of all examples' Jacobians together that may be written out.
DECOMPOSED = 2**22  # Up to so many numbers they are decomposed exactly where the randomised method could do.
# Of the randomised method: vectors beyond k, and powers of JᵀJ. To tune them again, change them and run
# tests/unit/capturing/test_jacobian.py, which compares the energy that is found with LAPACK's.
BEYOND, POWERS = 8, 6
VECTORS_AT_ONCE = 2**22  # Numbers at the taps of the vectors that are multiplied at once.


@dataclass(frozen=True, eq=False)
class Jacobian:
    """J of every example from a tap to the next one, ``following``.

    kernel: W diag(φ'), where it has this form. outputs: both taps' outputs with their graph, where it has not.
    """

    tap: Tap
    following: Tap
    kernel: UpstreamJacobian | None = None
    outputs: tuple[Tensor, Tensor] | None = None

    @cached_property
    def _back(self) -> Pull:
        assert self.outputs is not None
        return Pull(self.outputs[1], [self.outputs[0]])

    @cached_property
    def _forth(self) -> Pull:
        assert self.outputs is not None
        here, there = self.outputs
        with torch.inference_mode(False), torch.enable_grad():
            cotangent = torch.zeros_like(there, requires_grad=True)
            try:
                (pulled,) = torch.autograd.grad(there, here, cotangent, create_graph=True)
            except RuntimeError as error:
                raise ValueError(
                    f"what stands between taps {self.tap.name!r} and {self.following.name!r} has no second backward "
                    "pass, which a product with the upstream Jacobian takes: use upstream, which needs none"
                ) from error
        return Pull(pulled, [cotangent])

    def transposed_product(self, vectors: Tensor) -> Tensor:
        """Jᵀu: (guess, row of the next tap, unit) → (guess, row, unit)."""
        if self.kernel is not None:
            return self.kernel.transposed_product(vectors)
        return self._in_parts(
            vectors, lambda part: self.tap.layout.rows(self._back(self.following.layout.whole(part))[0])
        )

    def product(self, vectors: Tensor) -> Tensor:
        """J v: (guess, row, unit) → (guess, row of the next tap, unit)."""
        if self.kernel is not None:
            return self.kernel.product(vectors)
        return self._in_parts(
            vectors, lambda part: self.following.layout.rows(self._forth(self.tap.layout.whole(part))[0])
        )

    def _in_parts(self, vectors: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        at_once = max(1, VECTORS_AT_ONCE // max(self.tap.outputs.numel(), self.following.outputs.numel()))
        parts = [function(part) for part in vectors.split(at_once)]
        # Of one part no copy, unless a backward pass gave a number for many places.
        joined = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
        return joined.to(vectors.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of an example at the next tap and at this one.

        Raises:
            ValueError: taps whose rows belong to no example, or examples of different numbers of rows.
        """
        sizes = []
        for tap in (self.following, self.tap):
            if tap.owners is None or tap.owners.rows_each * tap.owners.n_examples != tap.owners.n_rows:
                raise ValueError(
                    f"tap {tap.name!r} has no rows of each example alone, so there is no Jacobian of each example to "
                    "decompose: use upstream, which needs none, or leave the tap out by taps="
                )
            sizes.append(tap.owners.rows_each * tap.units)
        return sizes[0], sizes[1]

    @property
    def is_plain(self) -> bool:
        """Whether it is a kernel with a row an example."""
        owners = (self.tap.owners, self.following.owners)
        return self.kernel is not None and all(part is not None and part.is_plain for part in owners)

    def dense(self) -> Tensor:
        """Every J written out, (example, number at the next tap, number).

        Raises:
            ValueError: more numbers than `WRITTEN_OUT`.
        """
        n_next, n = self.shape
        n_examples = self._n_examples
        if n_examples * n_next * n > WRITTEN_OUT:
            raise ValueError(
                f"the upstream Jacobians of tap {self.tap.name!r}, {n_examples} of {n_next} × {n} numbers, are too "
                f"large to write out (at most {WRITTEN_OUT} numbers): use upstream or orthogonal with the top k, or a "
                "smaller batch"
            )
        if self.is_plain and self.kernel is not None:
            return self.kernel.dense()
        rows = []
        for places in torch.arange(n_next).split(max(1, VECTORS_AT_ONCE // (n_examples * n_next))):
            basis = torch.nn.functional.one_hot(places, n_next).to(self.tap.outputs)
            vectors = from_examples(self.following, basis[:, None, :].expand(-1, n_examples, -1))
            rows.append(by_example(self.tap, self.transposed_product(vectors)))
        return torch.cat(rows).transpose(0, 1)

    @property
    def _n_examples(self) -> int:
        assert self.tap.owners is not None
        return self.tap.owners.n_examples

    def singular_vectors(
        self,
        k: int | Literal["rank"],
        *,
        which: Literal["top", "bottom"] = "top",
        exact: bool = False,
        iterations: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Singular triplets of every example as `UpstreamJacobian.singular_vectors` gives them.

        Without a kernel of one row an example, "rank", "bottom" and ``exact`` write every J out; otherwise J is written
        out while it has few numbers, and beyond that the k leading triplets come from a randomised range finder with
        ``iterations`` powers of JᵀJ (6 by default).

        Raises:
            ValueError: as `UpstreamJacobian.singular_vectors`; Jacobians that are too large to write out.
        """
        if self.is_plain and self.kernel is not None:
            return self.kernel.singular_vectors(k, which=which, exact=exact, iterations=iterations)
        check_flag("exact", exact)
        smaller = min(self.shape)
        if k != "rank" and k > smaller:
            raise ValueError(f"k must be 'rank' or from 1 to {smaller}, the Jacobian's smaller side, got {k!r}")
        if k == "rank" or which == "bottom" or exact:
            return self._decomposed(k, which)
        if iterations is None and self._n_examples * math.prod(self.shape) <= DECOMPOSED:
            return self._decomposed(k, which)
        return self._found(k, POWERS if iterations is None else iterations)

    def _decomposed(self, k: int | Literal["rank"], which: str) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = torch.linalg.svd(self.dense(), full_matrices=False)
        nonzero = values > max(self.shape) * torch.finfo(values.dtype).eps * values[:, :1]
        rank = nonzero.sum(1)
        kept = max(int(rank.max()), 1) if k == "rank" else k
        first = (rank - kept).clamp_min(0) if which == "bottom" else torch.zeros_like(rank)
        modes = (first[:, None] + torch.arange(kept, device=rank.device)).clamp_max(values.shape[1] - 1)
        values = (values * nonzero).gather(1, modes)
        there = values > 0
        left = left.gather(2, modes[:, None, :].expand(-1, left.shape[1], -1)) * there[:, None, :]
        right = right.mT.gather(2, modes[:, None, :].expand(-1, right.shape[2], -1)) * there[:, None, :]
        return left, values, right

    def _found(self, k: int, powers: int) -> tuple[Tensor, Tensor, Tensor]:
        """The range finder of Halko, Martinsson & Tropp (2011), for all examples at once."""
        n_next, n = self.shape
        size = min(k + BEYOND, n_next, n)
        generator = torch.Generator().manual_seed(START_SEED)
        # The same start for every example, so that what is found depends on the example alone.
        starts = torch.randn(size, 1, n_next, generator=generator, dtype=torch.float64).to(self.tap.outputs)
        basis = self._orthonormal(self._transposed(starts.expand(-1, self._n_examples, -1)))
        for _ in range(powers):
            basis = self._orthonormal(self._transposed(self._times(basis)))
        image = self._times(basis).permute(1, 2, 0)
        left, values, inner = torch.linalg.svd(image, full_matrices=False)
        right = basis.permute(1, 2, 0) @ inner.mT
        tolerance = max(n_next, n) * torch.finfo(values.dtype).eps
        there = (values > tolerance * values[:, :1])[:, :k]
        return left[:, :, :k] * there[:, None, :], values[:, :k] * there, right[:, :, :k] * there[:, None, :]

    def _times(self, vectors: Tensor) -> Tensor:
        """(vector, example, number) → (vector, example, number at the next tap)."""
        return by_example(self.following, self.product(from_examples(self.tap, vectors)))

    def _transposed(self, vectors: Tensor) -> Tensor:
        return by_example(self.tap, self.transposed_product(from_examples(self.following, vectors)))

    @staticmethod
    def _orthonormal(vectors: Tensor) -> Tensor:
        """(vector, example, number), orthonormal for each example."""
        return torch.linalg.qr(vectors.permute(1, 2, 0)).Q.permute(2, 0, 1).contiguous()


def by_example(tap: Tap, vectors: Tensor) -> Tensor:
    """(…, row, unit) → (…, example, number)."""
    assert tap.owners is not None
    return tap.owners.by_example(vectors).flatten(-2)


def from_examples(tap: Tap, numbers: Tensor) -> Tensor:
    """(…, example, number) → (…, row, unit)."""
    assert tap.owners is not None
    return tap.owners.from_examples(numbers.unflatten(-1, (tap.owners.rows_each, tap.units)))
