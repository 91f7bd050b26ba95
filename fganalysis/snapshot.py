"""capture(): a network frozen at one step on one batch, with everything that an estimator may look at.

Per tap l (a Linear module, in the order in which the forward pass reaches it; MATH: s_l = W_l x_l + bias_l):

    inputs x_l (example, input)       outputs s_l (example, unit)       weight W_l (unit, input)
    gradients g_l = ∂L/∂s_l (example, unit), carrying the 1/B of the mean over examples
    upstream Jacobian J_l = ∂s_{l+1}/∂s_l per example, as an operator

A bias is a weight whose input is the constant 1: where a tap has one, its inputs and weight carry one more column.
A frozen weight or bias (``requires_grad=False``) has no columns: it is neither perturbed nor counted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fganalysis.jacobian import UpstreamJacobian

Loss = Callable[[Tensor, Tensor], Tensor]
Autodiff = Literal["reverse", "forward"]
Layers = Literal["joint", "separate"]
EXAMPLES_CHECKED_IN_TRAINING = 32


class NonFiniteActivations(ValueError):
    """A forward pass that left NaN or infinite numbers at a tap."""


@dataclass(frozen=True)
class Tap:
    """One Linear module of the network on the batch; shapes in the module docstring."""

    name: str
    inputs: Tensor
    outputs: Tensor
    weight: Tensor
    has_bias: bool
    derivative: Tensor | None = None
    upstream: UpstreamJacobian | None = None
    has_weight: bool = True

    @property
    def units(self) -> int:
        return self.outputs.shape[1]

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The trainable parameters that the columns of ``weight`` are, by their names in the network."""
        # A network that is one Linear module is its own tap, of the empty name.
        leaves = [leaf for leaf, there in (("weight", self.has_weight), ("bias", self.has_bias)) if there]
        return tuple(f"{self.name}.{leaf}".removeprefix(".") for leaf in leaves)

    def by_parameter(self, columns: Tensor) -> dict[str, Tensor]:
        """Parts of a (…, unit, input) tensor by parameter name: (…, unit, input) and, for a bias, (…, unit)."""
        parts = [columns[..., : columns.shape[-1] - self.has_bias]] if self.has_weight else []
        parts += [columns[..., -1]] if self.has_bias else []
        return dict(zip(self.parameter_names, parts, strict=True))

    def columns(self, by_name: Mapping[str, Tensor]) -> Tensor:
        """The reverse of `by_parameter`: (…, unit, input), a bias as the last column."""
        parts = [by_name[name] for name in self.parameter_names]
        if self.has_bias:
            parts[-1] = parts[-1].unsqueeze(-1)
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    @cached_property
    def kernel(self) -> Tensor:
        """K = X Xᵀ, (example, example): the weight-space metric between two examples' guesses."""
        return self.inputs @ self.inputs.T

    @cached_property
    def kernel_root(self) -> Tensor:
        """F with FᵀF = K, (min(input, example), example): Xᵀ itself where inputs are fewer than examples, otherwise the
        upper triangle R of Xᵀ = QR."""
        if self.inputs.shape[1] < self.inputs.shape[0]:
            return self.inputs.T.contiguous()
        return torch.linalg.qr(self.inputs.T.double(), mode="r").R.to(self.inputs.dtype)


@dataclass(frozen=True)
class Snapshot:
    """A network at one step on one batch. Made by `capture`; every tensor in it is constant.

    Attributes:
        network: the frozen copy of the network.
        loss_fn: ``loss_fn(outputs, targets)``, a mean over examples.
        inputs, targets: the batch. outputs: the network's outputs on it.
        loss: the mean loss.
        taps: the Linear modules, in execution order.
        autodiff: how slopes are taken: "reverse" (inner product with the exact gradient) or "forward" (torch.func.jvp).
        step: the training step it was captured at.
        in_training: made by a training loop: `upstream` is checked on a few examples, and in forward mode there is no
            exact gradient, as it takes a backward pass.
    """

    network: torch.nn.Module
    loss_fn: Loss
    inputs: Tensor
    targets: Tensor
    outputs: Tensor
    loss: Tensor
    taps: tuple[Tap, ...]
    autodiff: Autodiff = "reverse"
    step: int = 0
    in_training: bool = False
    _memory: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_examples(self) -> int:
        return self.taps[0].inputs.shape[0]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(tap.name for tap in self.taps)

    @property
    def untapped_parameters(self) -> tuple[str, ...]:
        """Parameters that need a gradient and sit in no tap, by name: no estimator or comparison looks at them."""
        tapped = {name for tap in self.taps for name in tap.parameter_names}
        parameters = self.network.named_parameters()
        return tuple(name for name, parameter in parameters if parameter.requires_grad and name not in tapped)

    @cached_property
    def gradients(self) -> tuple[Tensor, ...]:
        """Exact activation gradients g_l by one backward pass, (example, unit) a tap, loss per unit of activation."""
        if self.in_training and self.autodiff == "forward":
            raise ValueError("autodiff='forward' trains without a backward pass, but this gradient takes one")
        with torch.enable_grad(), _TapHooks(self.network) as hooks:
            hooks.on_output = lambda output: output if output.requires_grad else output.requires_grad_()
            loss = self.loss_fn(self.network(self.inputs), self.targets)
            return tuple(gradient.detach() for gradient in torch.autograd.grad(loss, hooks.outputs))

    @cached_property
    def weight_gradients(self) -> tuple[Tensor, ...]:
        """Exact weight gradients G_l = Σ_b g_b x_bᵀ, (unit, input) a tap, loss per unit of weight."""
        return tuple(g.T @ tap.inputs for g, tap in zip(self.gradients, self.taps, strict=True))

    @property
    def upstream(self) -> tuple[UpstreamJacobian, ...]:
        """The upstream Jacobian of every tap but the last.

        Raises:
            ValueError: where backpropagation does not run through it alone: something between two taps mixes units, or
                a branch goes around a tap.
        """
        return self.remember("upstream", self._checked_upstream)

    def _checked_upstream(self) -> tuple[UpstreamJacobian, ...]:
        jacobians = []
        rows = slice(None, None, -(-self.n_examples // EXAMPLES_CHECKED_IN_TRAINING) if self.in_training else None)
        for index, tap in enumerate(self.taps[:-1]):
            chained = tap.upstream is not None
            if tap.upstream is not None and self.autodiff == "reverse":
                above, own = self.gradients[index + 1][rows], self.gradients[index][rows]
                error = (above @ tap.upstream.weight) * tap.upstream.derivative[rows] - own
                chained = bool(error.norm() <= 1e-3 * own.norm())
            if tap.upstream is None or not chained:
                raise ValueError(
                    f"the upstream Jacobian of tap {tap.name!r} is unknown: between it and the next Linear module "
                    "there must be elementwise functions only, and no branch around them"
                )
            jacobians.append(tap.upstream)
        return tuple(jacobians)

    @cached_property
    def mixed_gradients(self) -> tuple[Tensor, ...]:
        """K_l g_l, (example, unit) a tap: what a guess at the activations is multiplied with to give ⟨Ĝ_l, G_l⟩."""
        return tuple(tap.kernel @ gradient for tap, gradient in zip(self.taps, self.gradients, strict=True))

    def remember(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Whatever ``make`` returns, made once per snapshot and key: for factors that cost more than a guess."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def slopes(self, directions: Sequence[Tensor], layers: Layers = "joint") -> Tensor:
        """Directional derivatives of each example's loss along activation directions, loss per unit of direction.

        Args:
            directions: (guess, example, unit) a tap.
            layers: "joint" perturbs every tap in one pass, "separate" takes one pass a tap.

        Returns:
            (guess, 1, example) when joint, (guess, layer, example) when separate.
        """
        if self.autodiff == "forward":
            from fganalysis.forward_mode import activation_slopes

            return activation_slopes(self, directions, layers)
        own = [
            torch.linalg.vecdot(direction, gradient)
            for direction, gradient in zip(directions, self.gradients, strict=True)
        ]
        return torch.stack(own, dim=1) if layers == "separate" else sum(own[1:], own[0]).unsqueeze(1)

    def weight_slopes(self, directions: Sequence[Tensor], layers: Layers = "joint") -> Tensor:
        """Directional derivatives of the batch's loss along weight directions (guess, unit, input) a tap.

        Returns:
            (guess, 1) when joint, (guess, layer) when separate.
        """
        if self.autodiff == "forward":
            from fganalysis.forward_mode import weight_slopes

            return weight_slopes(self, directions, layers)
        own = [
            direction.flatten(1) @ gradient.flatten()
            for direction, gradient in zip(directions, self.weight_gradients, strict=True)
        ]
        return torch.stack(own, dim=1) if layers == "separate" else sum(own[1:], own[0]).unsqueeze(1)


def capture(
    network: torch.nn.Module,
    loss_fn: Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    autodiff: Autodiff = "reverse",
    step: int = 0,
) -> Snapshot:
    """Freezes ``network`` on one batch: two forward passes here, one backward pass when a gradient is first asked for.

    Args:
        network: any module whose weights sit in Linear modules applied once each to (example, input) arrays.
        loss_fn: ``loss_fn(outputs, targets)`` → the mean over examples of a per-example loss.
        inputs: (example, …). targets: (example, …).
        autodiff: "reverse" or "forward", see `Snapshot`.
        step: recorded as the ``step`` of every result.

    Raises:
        ValueError: an empty batch, a network without Linear modules or with a tap that is used twice, a module that
            lets examples interact or draws noise of its own (BatchNorm, Dropout in training mode), a loss that is not
            a mean over examples or fails for class indices beyond the outputs, NaN or infinite activations,
            activations in another precision than single or double.
    """
    snapshot = freeze(copy.deepcopy(network), loss_fn, inputs, targets, autodiff=autodiff, step=step)
    _refuse_loss_that_is_no_mean(snapshot)
    snapshot = replace(snapshot, in_training=False)
    if autodiff == "forward":
        exact = replace(snapshot, autodiff="reverse")
        _refuse_dropped_tangents(snapshot, exact.slopes, exact=True)
    return replace(snapshot, taps=_only_elementwise(snapshot))


def checked_for_training(
    network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, *, autodiff: Autodiff
) -> Snapshot:
    """What `capture` checks, without a backward pass in forward mode; on the network itself."""
    snapshot = freeze(network, loss_fn, inputs, targets, autodiff=autodiff, step=0)
    _refuse_loss_that_is_no_mean(snapshot)
    if autodiff == "forward":
        from fganalysis.forward_mode import differences

        _refuse_dropped_tangents(snapshot, partial(differences, snapshot), exact=False)
    return replace(snapshot, taps=_only_elementwise(snapshot))


def freeze(
    network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, *, autodiff: Autodiff, step: int
) -> Snapshot:
    """`capture` without its checks of the loss and without the copy: for training loops, which check once.

    Whether backpropagation runs through the upstream Jacobians alone is still looked at in every step, on a few
    examples: on all of them it costs a third of a backpropagation step.
    """
    if autodiff not in ("reverse", "forward"):
        raise ValueError(f"autodiff must be 'reverse' or 'forward', got {autodiff!r}")
    if inputs.shape[0] < 1:
        raise ValueError("the batch is empty: inputs have no examples")
    if inputs.shape[0] != targets.shape[0]:
        raise ValueError(f"inputs have {inputs.shape[0]} examples but targets {targets.shape[0]}")
    _refuse_interacting_modules(network)
    with torch.no_grad(), forward_ad.dual_level(), _TapHooks(network) as hooks:
        hooks.derivatives = []
        outputs = forward_ad.unpack_dual(network(inputs)).primal
    if not hooks.modules:
        raise ValueError("the network has no tap: no torch.nn.Linear was reached by the forward pass")
    loss = mean_loss(loss_fn, outputs.detach(), targets)
    if loss.ndim != 0:
        raise ValueError(f"loss_fn must return one number, the mean over examples, got the shape {tuple(loss.shape)}")
    taps = []
    for index, (name, module) in enumerate(hooks.modules):
        following = hooks.modules[index + 1][1] if index + 1 < len(hooks.modules) else None
        taps.append(_tap(name, module, hooks.inputs[index], hooks.outputs[index], hooks.derivatives[index], following))
    return Snapshot(network, loss_fn, inputs, targets, outputs, loss, tuple(taps), autodiff, step, in_training=True)


def mean_loss(loss_fn: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss; a failure that class indices beyond the outputs explain is said in one sentence, at no cost before."""
    place = outputs.device
    if outputs.is_cuda and _out_of_range(targets, outputs) is not None:
        # There a bad index is an assertion on the device, after which nothing runs in the process: ask on the CPU.
        outputs, targets = outputs.cpu(), targets.cpu()
    try:
        return loss_fn(outputs, targets).detach().to(place)
    except (IndexError, RuntimeError) as error:
        bad = _out_of_range(targets, outputs)
        if bad is None:
            raise
        message = f"targets must be class indices from 0 to {outputs.shape[1] - 1}, got {bad}"
        raise ValueError(message) from error


def _out_of_range(targets: Tensor, outputs: Tensor) -> int | None:
    """A target that is no index of an output unit, where targets are integers, one an example."""
    if targets.ndim != 1 or targets.is_floating_point() or outputs.ndim != 2 or not len(targets):
        return None
    least, most = int(targets.min()), int(targets.max())
    if least < 0:
        return least
    return most if most >= outputs.shape[1] else None


def _tap(
    name: str,
    module: torch.nn.Linear,
    inputs: Tensor,
    outputs: Tensor,
    derivative: Tensor | None,
    following: torch.nn.Linear | None,
) -> Tap:
    if inputs.ndim != 2:
        raise ValueError(f"tap {name!r} gets inputs of shape {tuple(inputs.shape)}: only (example, input) is supported")
    if outputs.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"tap {name!r} has activations of {outputs.dtype}: only float32 and float64 are supported")
    if not torch.isfinite(outputs).all():
        raise NonFiniteActivations(f"tap {name!r} has NaN or infinite activations")
    weight = module.weight.detach()
    if module.bias is not None:
        inputs = torch.cat([inputs, inputs.new_ones(inputs.shape[0], 1)], dim=1)
        weight = torch.cat([weight, module.bias.detach().unsqueeze(1)], dim=1)
    upstream = None
    if following is not None and derivative is not None:
        upstream = UpstreamJacobian(following.weight.detach(), derivative)
    return Tap(name, inputs, outputs, weight, module.bias is not None, derivative, upstream)


class _TapHooks:
    """Hooks on every Linear module: they record inputs and outputs in execution order, and may replace an output.

    With ``derivatives`` a list, each output leaves its tap carrying a tangent of ones, which the next tap's input
    brings back as φ'(s), the derivative of everything between the two taps, provided that it acts on each unit alone.
    This takes no backward pass; a tangent of the wrong shape means that there is no such elementwise map (None).
    """

    def __init__(self, network: torch.nn.Module):
        self.modules: list[tuple[str, torch.nn.Linear]] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.derivatives: list[Tensor | None] | None = None
        self.tangent: Callable[[Tensor], Tensor] = torch.ones_like
        self.on_output: Callable[[Tensor], Tensor] | None = None
        self._linears = [(n, m) for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)]
        self._handles: list[Any] = []

    def __enter__(self) -> _TapHooks:
        for name, module in self._linears:
            self._handles.append(module.register_forward_pre_hook(self._before))
            self._handles.append(module.register_forward_hook(self._named(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        if self.derivatives is not None:
            self.derivatives.append(None)

    def _before(self, module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (arrived,) = arguments
        if self.derivatives is not None:
            arrived, tangent = forward_ad.unpack_dual(arrived)
            if self.modules:
                same_shape = tangent is not None and tangent.shape == self.outputs[-1].shape
                self.derivatives.append(tangent.detach() if same_shape else None)
        self.inputs.append(arrived.detach())
        return (arrived,)

    def _named(self, name: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def after(module: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if any(name == seen for seen, _ in self.modules):
                raise ValueError(f"tap {name!r} is used more than once in a forward pass, which is not supported")
            assert isinstance(module, torch.nn.Linear)
            self.modules.append((name, module))
            if self.on_output is not None:
                output = self.on_output(output)
            self.outputs.append(output)
            # A clone goes on: an in-place activation would overwrite the recorded output.
            if self.derivatives is not None:
                return forward_ad.make_dual(output.clone(), self.tangent(output))
            return output.clone()

        return after


def _refuse_interacting_modules(network: torch.nn.Module) -> None:
    batch_norms = (torch.nn.modules.batchnorm._BatchNorm,)
    dropouts = (torch.nn.modules.dropout._DropoutNd,)
    for name, module in network.named_modules():
        if isinstance(module, batch_norms) and (module.training or not module.track_running_stats):
            raise ValueError(f"{name!r} is BatchNorm in training mode, so examples interact: call network.eval() first")
        if isinstance(module, dropouts) and module.training and module.p > 0:
            raise ValueError(f"{name!r} is dropout in training mode, so the loss is random: call network.eval() first")


def _refuse_loss_that_is_no_mean(snapshot: Snapshot) -> None:
    """Splits the batch unevenly: a mean over examples is the weighted mean of the parts' losses."""
    n, loss = snapshot.n_examples, snapshot.loss
    for cut in sorted({1, n // 2, n - 1} - {0, n}):
        parts = [
            snapshot.loss_fn(snapshot.outputs[rows], snapshot.targets[rows]).detach() * length
            for rows, length in ((slice(0, cut), cut), (slice(cut, n), n - cut))
        ]
        if not torch.isclose(sum(parts[1:], parts[0]) / n, loss, rtol=1e-4, atol=1e-6):
            raise ValueError("loss_fn is not a mean over examples: use reduction='mean' without class weights")


def _only_elementwise(snapshot: Snapshot) -> tuple[Tap, ...]:
    """The taps, without the upstream Jacobian where the map to the next tap is not elementwise: J r must be φ' ⊙ r."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), forward_ad.dual_level(), _TapHooks(snapshot.network) as hooks:
        hooks.derivatives, drawn = [], []

        def draw(output: Tensor) -> Tensor:
            drawn.append(torch.rand(output.shape, generator=generator, dtype=output.dtype).to(output.device) + 0.5)
            return drawn[-1]

        hooks.tangent = draw
        snapshot.network(snapshot.inputs)
    taps = []
    for tap, along, tangent in zip(snapshot.taps, drawn, hooks.derivatives, strict=True):
        if tap.derivative is not None and tangent is not None:
            elementwise = torch.allclose(tangent, tap.derivative * along, rtol=1e-3, atol=1e-5)
            tap = tap if elementwise else replace(tap, upstream=None, derivative=None)
        taps.append(tap)
    return tuple(taps)


def _refuse_dropped_tangents(snapshot: Snapshot, other_slopes: Callable[[list[Tensor]], Tensor], exact: bool) -> None:
    """One direction in forward mode against another way to its slopes: jvp can drop tangents silently."""
    generator = torch.Generator().manual_seed(0)
    directions = [
        torch.randn((1, *tap.outputs.shape), generator=generator, dtype=tap.outputs.dtype).to(tap.outputs.device)
        for tap in snapshot.taps
    ]
    forward, other = snapshot.slopes(directions), other_slopes(directions)
    if exact:
        agree = torch.allclose(forward, other, rtol=1e-2, atol=1e-3 * float(other.abs().max()))
    else:  # Kinks and rounding are in a difference; what is dropped is of the order of the slopes.
        agree = bool((forward - other).norm() <= 0.1 * other.norm() + 1e-4 * snapshot.loss.abs())
    if not agree:
        raise ValueError("forward mode gives other slopes than the gradient on this network: use autodiff='reverse'")
