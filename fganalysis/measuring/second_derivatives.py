"""Products of a snapshot's curvature with many vectors at a time, and losses at moved weights.

    H v = ∂²L/∂θ² v           G v = Jᵀ (∂²ℓ/∂z²) J v,    J = ∂z/∂θ, z the network's outputs, ℓ the loss of these

θ are all trained parameters, layer after layer, flattened like `Snapshot.weight_gradients`. L is the loss of the batch.

A product is the forward-mode derivative of the gradient. Forward mode twice would take less time, and is not used:
torch differentiates the mean and the variance of a normalisation layer once only in that mode, and returns another
number without an error. So no way is taken on trust: products must agree with differences of exact gradients in double
precision, and the first of these ways that does is used:

    1. forward mode over reverse mode
    2. the same without kernels of cuDNN and oneDNN, of which those of an LSTM have no forward mode
    3. reverse mode over reverse mode, for functions without a rule for forward mode; that of torch's mean squared error
       fails there
    4. the same one after another, by autograd's own graph, for functions of the user's that no transform takes

Kinks, as of ReLU, have no curvature in any of them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fganalysis.capturing.moved_losses import norm_of
from fganalysis.capturing.precision import plainly
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring.blocks import calling_thread_single
from fganalysis.measuring.ways_to_products import (
    WAYS,
    Functions,
    Matrix,
    Parts,
    ProductWay,
    Times,
    gradient_at,
    gradient_change,
    product,
    without_fused_kernels,
)

NUMBERS_IN_A_PASS = 2**22  # Weights and activations of the vectors that are multiplied in one pass, at most.
SMALL = 64  # A network of which so many vectors are multiplied in one pass is small.
SUMMATION_ROUNDING = 2.0**10  # By which two orders of summation may differ, in units of the data type's precision.
# Steps of the differences, relative to the norm of the weights. A step across a kink disagrees, and a shorter one does
# not; with the shortest, rounding is a share of 1e-16/1e-7 of the gradient.
RELATIVE_STEPS = (1e-4, 1e-5, 1e-6, 1e-7)
AGREE = 1e-2  # Relative difference between a product and a difference of gradients, in double precision.


class Curvature:
    """The curvature of a snapshot's loss along vectors (vector, weight), by one product a vector.

    way: how products are made. batched: whether many are made in one pass; where a network does not allow that, or
    gives other numbers that way, they are made one after another.
    """

    def __init__(self, snapshot: Snapshot, kind: Matrix):
        """Finds the way.

        Raises:
            ValueError: a network or loss whose second derivative is not available, or is not the derivative of its
                gradient.
        """
        self._snapshot, self._kind = snapshot, kind
        self._functions = Functions.of(snapshot)
        self._sizes = [layer.weight.numel() for layer in snapshot.weights]
        self.n_weights = sum(self._sizes)
        numbers = self.n_weights + sum(tap.outputs.numel() for tap in snapshot.taps)
        self._at_once = max(1, NUMBERS_IN_A_PASS // numbers)
        self.way: ProductWay = snapshot.remember(("way to products", kind), self._found_way)
        self.batched: bool = snapshot.remember(("products in a batch", kind), self._in_a_batch)
        self._losses_batched: bool | None = None

    def products(self, vectors: Tensor) -> Tensor:
        """H v of every vector, (vector, weight)."""
        with self._context():
            return torch.cat([self._products(part, self.batched) for part in vectors.split(self._at_once)])

    def forms(self, vectors: Tensor) -> Tensor:
        """vᵀHv of every vector in double precision, (vector,). A vector may have any length."""
        return self.forms_with_products(vectors)[0]

    def forms_with_products(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """vᵀHv, (vector,), and H v of unit vectors in the direction of v, times ‖v‖ in double precision."""
        lengths = power_of_two(vectors.abs().amax(1))
        scaled = vectors / lengths[:, None]
        found = self.products(scaled)
        forms = (scaled.double() * found.double()).sum(1) * lengths.double().square()
        return forms, found * lengths[:, None]

    def changes(self, vectors: Tensor, step: float) -> Tensor:
        """L(θ − step·v) − L(θ) and L(θ + step·v) − L(θ) of every vector, (2, vector), in double precision."""
        if self._losses_batched is None:
            self._losses_batched = self._losses_agree_in_a_batch()
        found = []
        with self._context(), torch.no_grad():
            for part in vectors.split(max(1, self._at_once // 2)):
                # In double precision, as a step size may be beyond the range of single precision where a guess is tiny.
                steps = (part.double() * step).to(part.dtype)
                # L(θ) from elsewhere would have another order of summation, whose rounding a step squared divides.
                losses = self._losses(torch.cat([torch.zeros_like(part[:1]), -steps, steps]), self._losses_batched)
                found.append((losses[1:].double() - losses[0].double()).view(2, len(part)))
        return torch.cat(found, dim=1)

    def _losses(self, steps: Tensor, batched: bool) -> Tensor:
        """L(θ + step), (vector,)."""
        moved = {name: self._functions.parameters[name] + part for name, part in self._parts(steps).items()}
        if batched:
            return vmap(self._functions.loss)(moved)
        return torch.stack(
            [self._functions.loss({name: part[i] for name, part in moved.items()}) for i in range(len(steps))]
        )

    def threads(self) -> AbstractContextManager[None]:
        """One torch thread for a small network, whose operations take less time than threads take to share them."""
        return calling_thread_single() if self._at_once >= SMALL else nullcontext()

    def _context(self) -> Any:
        return _Contexts(self._snapshot, self.way)

    def _times(self, functions: Functions, way: ProductWay) -> Times:
        return product(functions, self._kind, way)

    def _products(self, vectors: Tensor, batched: bool) -> Tensor:
        times, parts = self._times(self._functions, self.way), self._parts(vectors)
        if batched:
            return self._vectors(vmap(times)(parts))
        each = [times({name: part[i] for name, part in parts.items()}) for i in range(len(vectors))]
        return self._vectors({name: torch.stack([of[name] for of in each]) for name in parts})

    def _parts(self, vectors: Tensor) -> Parts:
        """(vector, weight) → (vector, …) by parameter name."""
        parts: Parts = {}
        for layer, part in zip(self._snapshot.weights, vectors.split(self._sizes, dim=1), strict=True):
            parts |= layer.by_parameter(part.unflatten(1, layer.weight.shape))
        return parts

    def _vectors(self, parts: Parts) -> Tensor:
        return torch.cat([layer.columns(parts).flatten(1) for layer in self._snapshot.weights], dim=1).detach()

    def _probes(self, like: Tensor) -> Tensor:
        """Two vectors: random ones, with the gradient added to the first, at the length of the weights."""
        generator = torch.Generator().manual_seed(5)
        vectors = torch.randn(2, self.n_weights, generator=generator, dtype=torch.float64)
        gradient = torch.cat([g.flatten() for g in self._snapshot.weight_gradients]).double().cpu()
        largest = float(gradient.abs().max())
        if largest > 0:
            gradient = gradient / largest
            vectors[0] += gradient * (vectors[0].norm() / gradient.norm())
        return vectors.to(like)

    def _found_way(self) -> ProductWay:
        problems = []
        try:
            judge = Functions.in_double_precision(self._snapshot)
        except Exception:  # Of what holds numbers in single precision, and of what cannot be copied.
            judge = self._functions
        for way in WAYS:
            with _Contexts(self._snapshot, way):
                try:
                    problem = self._disagreement(judge, way)
                    if not problem and judge is not self._functions:
                        self._times(self._functions, way)(self._single_probe(self._functions))
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # As many kinds as there are operations.
                    problem = _short(error)
            if not problem:
                return way
            problems.append(problem)
        matrix = "Hessian" if self._kind == "hessian" else "Gauss-Newton matrix"
        raise ValueError(
            f"the {matrix} is not available, as the network or its loss {problems[-1]}: write that part in operations "
            "that can be differentiated twice"
            + (", or use curvature='gauss_newton'" if self._kind == "hessian" else "")
        )

    def _single_probe(self, functions: Functions) -> Parts:
        like = next(iter(functions.parameters.values()))
        return {name: part[0] for name, part in self._parts(self._probes(like)[:1]).items()}

    def _disagreement(self, functions: Functions, way: ProductWay) -> str:
        """In words, how a product is not a difference of gradients; empty where it is."""
        along = self._single_probe(functions)
        found = self._flat(self._times(functions, way)(along))
        size = self._flat(functions.parameters).norm() / self._flat(along).norm()
        # Of zero weights the size of the step is that of small entries.
        step = float(size) if float(size) > 0 else 1e-2
        gradient = norm_of(self._flat(gradient_at(functions, functions.parameters)))
        precise = torch.finfo(found.dtype).eps
        for relative in RELATIVE_STEPS:
            change = self._flat(gradient_change(functions, self._kind, along, relative * step))
            rounding = 10 * precise * gradient / (relative * step)
            if norm_of(change - found) <= AGREE * norm_of(found) + rounding:
                return ""
        return "has a second derivative that is not that of its gradient"

    def _flat(self, parts: Parts) -> Tensor:
        return torch.cat([layer.columns(parts).flatten() for layer in self._snapshot.weights]).detach()

    def _in_a_batch(self) -> bool:
        """Whether two products are the same in a batch as one by one, to rounding."""
        if self.way == "reverse one by one":
            return False
        vectors = self._probes(self._snapshot.like)
        with self._context():
            plain = self._products(vectors, batched=False)
            try:
                batched = self._products(vectors, batched=True)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # A batch can fail in as many ways as there are operations, and the plain one is judge.
                return False
        return _same(plain, batched)

    def _losses_agree_in_a_batch(self) -> bool:
        steps = self._probes(self._snapshot.like) * torch.finfo(self._snapshot.dtype).eps ** (1 / 3)
        with self._context(), torch.no_grad():
            plain = self._losses(steps, batched=False)
            try:
                batched = self._losses(steps, batched=True)
            except torch.OutOfMemoryError:
                raise
            except Exception:
                return False
        return _same(plain[:, None], batched[:, None])


class _Contexts:
    """The context of a way: no autocast, no fused attention, no inference mode."""

    def __init__(self, snapshot: Snapshot, way: ProductWay):
        self._outer = plainly(snapshot.device)
        self._inner: Any = without_fused_kernels() if way == "without fused kernels" else nullcontext()

    def __enter__(self) -> None:
        self._outer.__enter__()
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)
        self._outer.__exit__(*error)


def power_of_two(sizes: Tensor) -> Tensor:
    """The largest power of two up to each size, 1 for 0: dividing by it rounds nothing."""
    return torch.where(sizes > 0, sizes / (2 * torch.frexp(sizes).mantissa), torch.ones_like(sizes))


def _same(plain: Tensor, batched: Tensor) -> bool:
    if plain.shape != batched.shape:
        return False
    tolerance = SUMMATION_ROUNDING * torch.finfo(plain.dtype).eps
    return bool(((plain - batched).norm(dim=1) <= tolerance * plain.norm(dim=1)).all())


def _short(error: Exception) -> str:
    return f"cannot be differentiated twice ({type(error).__name__})"
