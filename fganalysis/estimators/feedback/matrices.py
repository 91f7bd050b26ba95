"""Feedback matrices B, the output error e, and the change d of the output along perturbed activations.

    e_b = ∂L/∂s_last,b            d_b = Σ_l 𝒥_l,b u_l,b,   𝒥_l,b = ∂s_last,b/∂h_l,b,   h_l = φ(s_l)

Where the snapshot's autodiff is "forward", e and d need no backward pass through the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fganalysis.arguments import check_number, check_seed, described
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import ActivationEstimates

TANGENTS_AT_ONCE = 64


def output_error(snapshot: Snapshot) -> Tensor:
    """e, (example, unit) of the last tap, loss per unit of activation.

    With "reverse" it is the gradient at the last tap. With "forward" it takes a tangent for each output unit, through
    the loss function and what follows the last tap.
    """
    if snapshot.autodiff == "reverse":
        return snapshot.gradients[-1]
    error: Tensor = snapshot.remember("output_error", lambda: _error_by_tangents(snapshot))
    return error


def _error_by_tangents(snapshot: Snapshot) -> Tensor:
    last = snapshot.taps[-1]
    at_last = torch.zeros_like(last.outputs)

    def losses(perturbation: Tensor) -> Tensor:
        module = snapshot.network.get_submodule(last.name)
        with module.register_forward_hook(lambda module, arguments, output: output + perturbation):
            outputs = snapshot.outputs_of(snapshot.network)
        return torch.func.vmap(of_one)(outputs, snapshot.targets) / snapshot.n_examples

    def of_one(output: Tensor, target: Tensor) -> Tensor:
        return snapshot.loss_fn(output.unsqueeze(0), target.unsqueeze(0))

    def along(unit: Tensor) -> Tensor:
        slopes: Tensor = torch.func.jvp(losses, (at_last,), (unit.expand_as(at_last),))[1]
        return slopes

    with torch.no_grad():
        return torch.func.vmap(along, out_dims=1, chunk_size=TANGENTS_AT_ONCE)(torch.eye(last.units).to(at_last))


def changes_along_a_chain(snapshot: Snapshot, directions: Sequence[Tensor]) -> Tensor:
    """d of a chain of Linear modules, along perturbations u of all hidden activations h_l = φ(s_l) together.

    directions: u_l (guess, example, unit) for every tap but the last. Returns (guess, example, output unit).
    "reverse" multiplies by the chain of upstream Jacobians, "forward" takes a forward-mode pass.
    """
    if snapshot.autodiff == "forward":
        return _changes_by_forward_mode(snapshot, directions)
    changes = directions[0] @ snapshot.upstream[0].weight.T
    for jacobian, direction in zip(snapshot.upstream[1:], directions[1:], strict=True):
        changes = torch.addcmul(direction, changes, jacobian.derivative) @ jacobian.weight.T
    return changes


def _changes_by_forward_mode(snapshot: Snapshot, directions: Sequence[Tensor]) -> Tensor:
    network = snapshot.network
    names = [tap.name for tap in snapshot.taps]

    def at_last_tap(perturbations: tuple[Tensor, ...]) -> Tensor:
        outputs: list[Tensor] = []
        handles = [network.get_submodule(names[-1]).register_forward_hook(lambda m, a, output: outputs.append(output))]
        for name, perturbation in zip(names[1:], perturbations, strict=True):
            handles.append(network.get_submodule(name).register_forward_pre_hook(_adding(perturbation)))
        try:
            snapshot.outputs_of(network)
        finally:
            for handle in handles:
                handle.remove()
        return outputs[0]

    origin = tuple(torch.zeros_like(direction[0]) for direction in directions)

    def along(tangents: tuple[Tensor, ...]) -> Tensor:
        changes: Tensor = torch.func.jvp(at_last_tap, (origin,), (tangents,))[1]
        return changes

    with torch.no_grad():
        return torch.func.vmap(along)(tuple(directions))


def _adding(perturbation: Tensor) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], Tensor]:
    return lambda module, arguments: arguments[0] + perturbation


def random_matrices(
    shapes: Sequence[tuple[int, ...]], seed: int, scale: float, like: Tensor, fans: Sequence[float] | None = None
) -> tuple[Tensor, ...]:
    """Matrices (unit, error) of independent N(0, scale²/unit) entries: E‖B e‖² = scale²‖e‖².

    fans: in the place of ``unit``, for tensors of other shapes. What is drawn depends on the seed alone. It is drawn on
    the CPU in float32, which is seven times faster than float64.
    """
    generator = torch.Generator().manual_seed(seed)
    fans = [shape[0] for shape in shapes] if fans is None else fans
    return tuple(
        torch.randn(shape, generator=generator).mul_(scale / fan**0.5).to(like)
        for shape, fan in zip(shapes, fans, strict=True)
    )


def read_by_next(snapshot: Snapshot, index: int) -> Tensor:
    """φ(s_l) of tap ``index`` of a chain, (row, unit): what the next tap's weight is multiplied by."""
    arriving = snapshot.taps[index + 1].arriving
    assert arriving is not None
    return arriving


def check_feedback(name: str, matrices: object) -> None:
    """Raises ValueError unless ``feedback`` is None or a tuple or list of tensors of real numbers."""
    if matrices is None:
        return
    parts = matrices if isinstance(matrices, tuple | list) else [matrices]
    wrong = [part for part in parts if not (isinstance(part, Tensor) and part.is_floating_point())]
    if wrong or parts is not matrices:
        raise ValueError(
            f"{name} must be a tuple with a floating-point tensor for every hidden tap, "
            f"got {described((*wrong, matrices)[0])}"
        )


def check_matrices(
    matrices: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], names: Sequence[str], like: Tensor
) -> None:
    """Raises ValueError unless there is one matrix a hidden tap, of the shape given for it, of the network's type."""
    if len(matrices) != len(shapes):
        raise ValueError(f"feedback must hold one matrix a hidden tap, {len(shapes)} of them, got {len(matrices)}")
    for name, matrix, shape in zip(names, matrices, shapes, strict=False):
        if matrix.shape != shape:
            raise ValueError(f"the feedback of tap {name!r} must have the shape {shape}, got {tuple(matrix.shape)}")
        if (matrix.dtype, matrix.device) != (like.dtype, like.device):
            raise ValueError(
                f"the feedback of tap {name!r} must have the network's precision and device, {like.dtype} on "
                f"{like.device}, got {matrix.dtype} on {matrix.device}"
            )


def check_drawn(seed: object, scale: object, feedback: object) -> None:
    """Raises ValueError for a wrong seed or scale of `random_matrices`, or wrong matrices given in their place."""
    check_seed("seed", seed)
    check_number("scale", scale, above=0)
    check_feedback("feedback", feedback)


def repeated(guesses: Sequence[Tensor], n_guesses: int) -> ActivationEstimates:
    """``n_guesses`` times the same guess, (row, unit) or (1, row, unit) for each tap, without copies.

    A tap that has ``n_guesses`` of them already keeps them.
    """
    return ActivationEstimates(tuple(guess.expand(n_guesses, -1, -1) for guess in guesses))
