"""A training step of every family as its paper has it, on an MLP without biases, with everything counted that it runs.

Forward and backward passes are counted by hooks on the network, tangents where they are taken, and multiply-adds by
torch as it runs them, but for what `Counted.beside` names: noise, decompositions, heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import RandomProjection
from fganalysis.estimators.local import heads
from fganalysis.estimators.noise import drawn
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.upstream.newton_schulz_polynomials import apply, nearest

Guess = list[Tensor]  # (unit, input) a layer


class Counted:
    """The passes of a step on the network of a snapshot, and what it computes on the way."""

    def __init__(self, snapshot: Snapshot, generator: torch.Generator, rows: Tensor | None = None):
        self.snapshot, self.generator = snapshot, generator
        every = torch.arange(snapshot.n_examples)
        self.rows = every if rows is None else rows
        self.share = len(self.rows) / snapshot.n_examples
        self.network = snapshot.network
        self.linear = [module for module in self.network if isinstance(module, nn.Linear)]
        self.weights = [module.weight for module in self.linear]
        self.forward_passes = self.tangents = self.backward_passes = 0.0
        self.multiply_adds = 0
        self._meter: FlopCounterMode | None = None

    @contextmanager
    def counting(self) -> Iterator[None]:
        def passed(module: nn.Module, arguments: Any, output: Tensor) -> None:
            self.forward_passes += len(output) / self.snapshot.n_examples
            if output.requires_grad:
                output.register_hook(self._came_back)

        handle = self.network.register_forward_hook(passed)
        try:
            with FlopCounterMode(display=False) as meter:
                yield
            self.multiply_adds += meter.get_total_flops() // 2
        finally:
            handle.remove()

    def _came_back(self, gradient: Tensor) -> None:
        self.backward_passes += len(gradient) / self.snapshot.n_examples

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is no product of a whole layer over the batch."""
        with FlopCounterMode(display=False) as meter:
            yield
        self.multiply_adds -= meter.get_total_flops() // 2

    def forward(self) -> None:
        """One pass, which leaves x_l (inputs), φ' (derivatives) and e, the gradient at the outputs."""
        self.x: list[Tensor] = []
        self.derivatives: list[Tensor] = []

        def before(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self.x.append(arguments[0])

        def at_relu(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self.derivatives.append((arguments[0] > 0).to(arguments[0]))

        handles = [module.register_forward_pre_hook(before) for module in self.linear]
        handles += [m.register_forward_pre_hook(at_relu) for m in self.network if isinstance(m, nn.ReLU)]
        with torch.no_grad():
            outputs = self.network(self.snapshot.inputs[self.rows])
        for handle in handles:
            handle.remove()
        outputs.requires_grad_()
        loss = self.snapshot.loss_fn(outputs, self.snapshot.targets[self.rows])
        (self.error,) = torch.autograd.grad(loss, outputs)

    def tangent(self, at_taps: Sequence[Tensor | None], behind: Sequence[Tensor | None] = ()) -> Tensor:
        """Slopes of each example along directions at the taps and behind the ReLUs, (example,)."""
        self.tangents += self.share
        moved: Tensor | None = None
        for index, direction in enumerate(at_taps):
            if index:
                added = behind[index - 1] if behind else None
                moved = None if moved is None else moved * self.derivatives[index - 1]
                moved = added if moved is None else moved if added is None else moved + added
                moved = None if moved is None else moved @ self.weights[index].T
            if direction is not None:
                moved = direction if moved is None else moved + direction
        assert moved is not None
        self.changes = moved
        return torch.linalg.vecdot(moved, self.error)

    def backward(self) -> Guess:
        outputs = self.network(self.snapshot.inputs[self.rows])
        loss = self.snapshot.loss_fn(outputs, self.snapshot.targets[self.rows])
        return list(torch.autograd.grad(loss, self.weights))

    def at_weights(self, guesses: Sequence[Tensor]) -> Guess:
        """ĝᵀ x, a product a layer."""
        return [guess.T @ x for guess, x in zip(guesses, self.x, strict=True)]

    def noise(self, estimator: Any, units: int) -> Tensor:
        shape, like = (1, len(self.rows), units), self.snapshot.like
        return drawn(estimator.noise, shape, self.generator, like)[0]

    def jacobians(self) -> list[Tensor]:
        """(example, next_unit, unit) of every tap but the last."""
        return [w * d[:, None, :] for w, d in zip(self.weights[1:], self.derivatives, strict=True)]

    def check(self, stated: Passes, in_part: bool) -> None:
        """Passes are equal to the statement, multiply-adds to a few percent, as the first and last layer take fewer.

        in_part: tangents go through a part of the network only and count whole, so multiply-adds are fewer.
        """
        counts = self.forward_passes, self.tangents, self.backward_passes
        assert counts == (stated.forward, stated.tangent, stated.backward)
        of_a_pass = self.snapshot.n_examples * sum(weight.numel() for weight in self.weights)
        taken = self.multiply_adds / of_a_pass / stated.in_forward_passes()
        assert (0.4 if in_part else 0.96) < taken < 1.001


def backpropagation(step: Counted, estimator: Any) -> Guess:
    return step.backward()


def _scaled(step: Counted, estimator: Any, directions: Sequence[Tensor], guesses: Sequence[Tensor]) -> list[Tensor]:
    """Guesses scaled by the slopes along the directions."""
    if estimator.layers == "joint":
        slopes = [step.tangent(directions)] * len(directions)
    else:
        slopes = [step.tangent([d if i == j else None for i, d in enumerate(directions)]) for j in range(len(guesses))]
    if estimator.slope == "batch":
        slopes = [slope.sum().expand_as(slope) for slope in slopes]
    return [guess * slope[:, None] for guess, slope in zip(guesses, slopes, strict=True)]


def _along(step: Counted, estimator: Any, directions: Sequence[Tensor]) -> Guess:
    return step.at_weights(_scaled(step, estimator, directions, directions))


def activity(step: Counted, estimator: Any) -> Guess:
    step.forward()
    return _along(step, estimator, [step.noise(estimator, len(weight)) for weight in step.weights])


def upstream(step: Counted, estimator: Any) -> Guess:
    step.forward()
    directions = []
    for weight, derivative in zip(step.weights[1:], step.derivatives, strict=True):
        directions.append((step.noise(estimator, len(weight)) @ weight) * derivative)
    return _along(step, estimator, [*directions, step.noise(estimator, len(step.weights[-1]))])


def decomposed(step: Counted, estimator: Any) -> Guess:
    """Along Aᵀε with the A of each example made from its Jacobian."""
    step.forward()
    with step.beside():
        directions = []
        for jacobian in step.jacobians():
            left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
            if type(estimator).__name__ == "NewtonSchulzUpstream":
                step_at = nearest(values[:, estimator.k - 1] / values[:, 0])
                matrices = apply(step_at, jacobian / values[:, :1, None])
            else:
                kept = (values > 1e-9 * values[:, :1]).to(values)
                if type(estimator).__name__ == "OrthogonalUpstream":
                    kept[:, estimator.k :] = 0
                matrices = (left * kept[:, None, :]) @ right
            noise = step.noise(estimator, jacobian.shape[1])
            directions.append(torch.bmm(noise[:, None, :], matrices)[:, 0])
    return _along(step, estimator, [*directions, step.noise(estimator, len(step.weights[-1]))])


def activation_mixing(step: Counted, estimator: Any) -> Guess:
    step.forward()
    with step.beside():
        at_inputs = []
        for x in step.x[1:]:
            mixed = drawn(estimator.noise, (1, len(x), len(x)), step.generator, x)[0] @ x * (x > 0)
            at_inputs.append(mixed * (x.shape[1] ** 0.5 / torch.linalg.vector_norm(mixed, dim=1, keepdim=True)))
    # u is added to what ReLU returns: the tangent of the pre-activation before it is u where the unit is alive, and u
    # is zero where it is dead.
    last = step.noise(estimator, len(step.weights[-1]))
    guesses = [u * derivative for u, derivative in zip(at_inputs, step.derivatives, strict=True)]
    return step.at_weights(_scaled(step, estimator, [*at_inputs, last], [*guesses, last]))


def weight(step: Counted, estimator: Any) -> Guess:
    step.forward()
    n_examples = () if estimator.shared else (step.snapshot.n_examples,)
    shapes = [(1, *n_examples, *weight.shape) for weight in step.weights]
    directions = [drawn(estimator.noise, s, step.generator, step.snapshot.like, vector_dims=2)[0] for s in shapes]
    if estimator.shared:
        slopes = _slopes_of_weights(step, directions, estimator.layers)
        return [v * t.sum() for v, t in zip(directions, slopes, strict=True)]
    slopes = _slopes_of_weights(step, directions, estimator.layers)
    return [(t[None] @ v.flatten(1)).view_as(v[0]) for v, t in zip(directions, slopes, strict=True)]


def structured(step: Counted, estimator: Any) -> Guess:
    """Along directions that are drawn as the estimator draws them."""
    step.forward()
    with step.beside():
        directions = [direction[0] for direction in estimator.draw(step.snapshot, 1, step.generator)]
    slopes = _slopes_of_weights(step, directions, getattr(estimator, "layers", "joint"))
    return [v * t.sum() for v, t in zip(directions, slopes, strict=True)]


def sparse(step: Counted, estimator: Any) -> Guess:
    return weight(step, estimator.as_weight_perturbation())


def factored(step: Counted, estimator: Any) -> Guess:
    """As `structured`, with V x from the factors of V, which takes no product of the whole layer."""
    step.forward()
    with step.beside():
        factors = list(_factors(step, estimator))
        along = [x @ right @ left.T for x, (left, right) in zip(step.x, factors, strict=True)]
    if estimator.layers == "joint":
        slopes = [step.tangent(along)] * len(along)
    else:
        slopes = [step.tangent([a if i == j else None for i, a in enumerate(along)]) for j in range(len(along))]
    with step.beside():
        return [t.sum() * left @ right.T for t, (left, right) in zip(slopes, factors, strict=True)]


def _factors(step: Counted, estimator: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(unit, mode) and (input, mode) of V, a layer each."""
    like, rank = step.snapshot.like, estimator.rank

    def noise(*shape: int) -> Tensor:
        return drawn(estimator.noise, (1, *shape), step.generator, like, vector_dims=2)[0]

    if hasattr(estimator, "window"):
        for held in estimator.subspaces(step.snapshot).values():
            inside = noise(held.left.shape[1], held.right.shape[1])
            yield held.left @ inside * held.scale, held.right
    else:
        for weight in step.weights:
            left, right = (noise(size, rank) for size in weight.shape)
            yield left, right / rank**0.5


def _slopes_of_weights(step: Counted, directions: Sequence[Tensor], layers: str) -> list[Tensor]:
    pairs = zip(directions, step.x, strict=True)
    along = [torch.bmm(v, x[:, :, None])[:, :, 0] if v.ndim == 3 else x @ v.T for v, x in pairs]
    if layers == "joint":
        return [step.tangent(along)] * len(along)
    return [step.tangent([a if i == j else None for i, a in enumerate(along)]) for j in range(len(along))]


def multi_tangent(step: Counted, estimator: Any) -> Guess:
    step.forward()
    like, shapes = step.snapshot.like, [(1, estimator.k, *weight.shape) for weight in step.weights]
    tangents = [drawn(estimator.noise, shape, step.generator, like, vector_dims=2)[0] for shape in shapes]
    slopes = torch.stack(
        [
            torch.stack([t.sum() for t in _slopes_of_weights(step, [v[i] for v in tangents], estimator.layers)])
            for i in range(estimator.k)
        ],
        dim=1,
    )
    with step.beside():
        if estimator.combine == "mean":
            coefficients = slopes / estimator.k
        else:
            whole = torch.cat([v.flatten(1) for v in tangents], dim=1)
            coefficients = torch.linalg.solve(whole @ whole.T, slopes[0]).expand_as(slopes)
        return [torch.tensordot(c, v, dims=1) for c, v in zip(coefficients, tangents, strict=True)]


def finite_difference(step: Counted, estimator: Any) -> Guess:
    like = step.snapshot.like
    shapes = [(1, *weight.shape) for weight in step.weights]
    z = [drawn(estimator.noise, shape, step.generator, like, vector_dims=2)[0] for shape in shapes]

    def loss(by: float) -> Tensor:
        with torch.no_grad():
            for weight, direction in zip(step.weights, z, strict=True):
                weight.add_(direction, alpha=by)
            value = step.snapshot.loss_fn(step.network(step.snapshot.inputs), step.snapshot.targets)
            for weight, direction in zip(step.weights, z, strict=True):
                weight.sub_(direction, alpha=by)
        return value

    epsilon = estimator.epsilon
    if estimator.central:
        slope = (loss(epsilon) - loss(-epsilon)) / (2 * epsilon)
    else:
        slope = (loss(epsilon) - loss(0.0)) / epsilon
    return [slope * direction for direction in z]


def feedback_alignment(step: Counted, estimator: Any) -> Guess:
    """The backward pass is autograd's, through modules whose products backward are with other matrices."""
    matrices = estimator.matrices(step.snapshot)

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            ctx.save_for_backward(x, b)
            return x @ w.T

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
            x, b = ctx.saved_tensors
            return gradient @ b.T if ctx.needs_input_grad[0] else None, gradient.T @ x, None

    pairs = zip(step.linear, [torch.zeros(0), *matrices], strict=True)
    calls: dict[nn.Module, Callable[[Tensor], Tensor]] = {
        module: (lambda x, module=module, b=b: Through.apply(x, module.weight, b)) for module, b in pairs
    }
    for module, call in calls.items():
        module.forward = call  # type: ignore[method-assign]
    found = step.backward()
    for module in calls:
        del module.forward
    return found


def _delivered(step: Counted, at_hidden: Sequence[Tensor]) -> Guess:
    pairs = zip(at_hidden, step.derivatives, strict=True)
    return step.at_weights([*(at * derivative for at, derivative in pairs), step.error])


def direct_feedback(step: Counted, estimator: Any) -> Guess:
    step.forward()
    with step.beside():
        at_hidden = [step.error @ matrix.T for matrix in estimator.matrices(step.snapshot)]
    return _delivered(step, at_hidden)


def forward_direct_feedback(step: Counted, estimator: Any) -> Guess:
    """The learning is one more direction, behind φ of every hidden layer, whose tangent at the outputs it needs."""
    step.forward()
    feedback = estimator.feedback if hasattr(estimator, "feedback") else estimator.optimiser.values
    with step.beside():
        at_hidden = [step.error @ matrix[0] for matrix in feedback]
    guess = _delivered(step, at_hidden)
    behind = [drawn(estimator.noise, (1, len(x), x.shape[1]), step.generator, x)[0] for x in step.x[1:]]
    step.tangent([None] * len(step.weights), behind)
    with step.beside():
        step.learned = [step.changes.T @ u / len(u) for u in behind]
    return guess


def _backward_to_inputs(step: Counted) -> tuple[list[Tensor], list[Tensor]]:
    """g (example, unit) and x (example, input) of every layer, without a gradient of the weights."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def passed(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(arguments[0].detach())
        outputs.append(output)

    handles = [module.register_forward_hook(passed) for module in step.linear]
    loss = step.snapshot.loss_fn(step.network(step.snapshot.inputs[step.rows]), step.snapshot.targets[step.rows])
    for handle in handles:
        handle.remove()
    return list(torch.autograd.grad(loss, outputs)), inputs


def row_sketch(step: Counted, estimator: Any) -> Guess:
    guesses = []
    pairs = list(zip(*_backward_to_inputs(step), strict=True))
    with step.beside():
        for g, x in pairs:
            rows = 1 if estimator.within == "example" else len(x)  # A row an example.
            z = drawn(estimator.noise, (1, estimator.probes, rows), step.generator, step.snapshot.like)[0]
            z = z.expand(-1, len(x))
            if estimator.within == "example":
                guesses.append(z[:, 0].square().mean() * g.T @ x)
            else:
                guesses.append((z @ g).T @ (z @ x) / estimator.probes)
    return guesses


def input_sketch(step: Counted, estimator: Any) -> Guess:
    guesses = []
    pairs = list(zip(*_backward_to_inputs(step), strict=True))
    with step.beside():
        for g, x in pairs:
            s = drawn(estimator.noise, (1, estimator.columns, x.shape[1]), step.generator, step.snapshot.like)[0]
            guesses.append(g.T @ (x @ s.T) @ s / estimator.columns)
    return guesses


def row_sampling(step: Counted, estimator: Any) -> Guess:
    guesses = []
    pairs = list(zip(*_backward_to_inputs(step), strict=True))
    with step.beside():
        for g, x in pairs:
            sizes = g.norm(dim=1) * x.norm(dim=1) if estimator.by == "norm" else torch.ones(len(x), dtype=g.dtype)
            order = (g.norm(dim=1) * x.norm(dim=1)).argsort(descending=True, stable=True)
            p = sizes[order] / sizes.sum()
            uniform = torch.rand(1, estimator.count, generator=step.generator, dtype=torch.float64)[0]
            chosen = torch.searchsorted(p.cumsum(0), uniform)
            terms = [torch.outer(g[order[j]], x[order[j]]) / p[j] for j in chosen.tolist()]
            guesses.append(sum(terms[1:], terms[0]) / estimator.count)
    return guesses


def projection(step: Counted, estimator: Any) -> Guess:
    guesses, gradients = [], step.backward()
    with step.beside():
        for gradient in gradients:
            directions = torch.linalg.svd(gradient)[2][: estimator.k].T
            if isinstance(estimator, RandomProjection):
                shape = (1, gradient.shape[1], min(estimator.k, gradient.shape[1]))
                normal = torch.randn(shape, generator=step.generator, dtype=gradient.dtype)
                directions = torch.linalg.qr(normal[0]).Q
            guesses.append(gradient @ directions @ directions.T)
    return guesses


def local_loss(step: Counted, estimator: Any) -> Guess:
    """Heads behind every ReLU, or behind those that ``blocks`` names, where guesses are made and pulled back."""
    step.forward()
    with step.beside():
        own = estimator.own_heads(step.snapshot, estimator.mode == "trained")
        loss = step.snapshot.loss_fn

        def of_head(head: heads.Parameters, x: Tensor) -> Tensor:
            single = tuple(tensor[None] for tensor in head)
            return heads.block_gradients(single, x, lambda outputs: loss(outputs, step.snapshot.targets))[0]

        read = step.x[1:] if estimator.blocks is None else [step.x[int(name) // 2 + 1] for name in estimator.blocks]
        at_blocks = [of_head(head, x.detach()) for head, x in zip(own, read, strict=True)]
        learned = estimator.own_heads(step.snapshot, trained=True)
        targets = [of_head(head, x.detach()) for head, x in zip(learned, read, strict=True)]
    if estimator.blocks is not None:
        return _pulled_back(step, estimator, at_blocks)
    v = [at * derivative for at, derivative in zip(at_blocks, step.derivatives, strict=True)]
    n_layers = len(v) + 1

    def alone(index: int, direction: Tensor) -> list[Tensor | None]:
        return [direction if i == index else None for i in range(n_layers)]

    if estimator.space == "activation":
        unit = [part / torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in v]
        if estimator.target == "global":
            slopes = [step.tangent(alone(index, part)) for index, part in enumerate(unit)]
        else:
            pairs = zip(targets, step.derivatives, strict=True)
            local = [target * derivative for target, derivative in pairs]
            slopes = [torch.linalg.vecdot(part, target) for part, target in zip(unit, local, strict=True)]
        guesses = [part * slope[:, None] for part, slope in zip(unit, slopes, strict=True)]
        return step.at_weights([*guesses, step.error])
    whole = step.at_weights([*v, step.error])
    found = []
    for index, part in enumerate(whole[:-1]):
        assert estimator.target == "global"
        slope = step.tangent(alone(index, step.x[index] @ part.T)).sum()
        found.append(part * slope / part.square().sum())
    return [*found, whole[-1]]


def _pulled_back(step: Counted, estimator: Any, at_blocks: Sequence[Tensor]) -> Guess:
    """From the blocks' outputs, and from the loss behind the last block, to the weights, by one backward pass."""
    ends = [int(name) for name in estimator.blocks]
    guesses = []
    for end, at_block in zip(ends, at_blocks, strict=True):
        unit = at_block / torch.linalg.vector_norm(at_block, dim=1, keepdim=True)
        behind: list[Tensor | None] = [unit if i == end // 2 else None for i in range(len(step.weights) - 1)]
        slopes = step.tangent([None] * len(step.weights), behind)
        guesses.append(unit * slopes[:, None])
    step.backward_passes += 1
    gradient, guess = step.error, []
    for index in reversed(range(len(step.weights))):
        guess.insert(0, gradient.T @ step.x[index])
        if not index:
            break
        before = gradient @ step.weights[index]
        if 2 * index - 1 in ends:  # The ReLU before this layer ends a block.
            before = guesses[ends.index(2 * index - 1)]
        gradient = before * step.derivatives[index - 1]
    return guess
