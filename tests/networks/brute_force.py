"""Exact gradients, slopes and Jacobians of any network, by `torch.func` and hooks alone.

Nothing here reads fganalysis: it is the independent route that the package's rows, kernels and products are checked
against. Everything is dense and slow, for networks of a few hundred parameters in float64 and evaluation mode.

A module may be called several times and give a tuple, so perturbations of outputs are, by module name, a list with an
entry for each call, each a list with an entry for each floating-point tensor of that call's output. A tensor alone
stands for the first tensor of the only call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

Calls = list[list[torch.Tensor]]
Perturbation = torch.Tensor | Sequence[Sequence[torch.Tensor]]
LossFn = Callable[[Any, Any], torch.Tensor]


@contextmanager
def forward_mode() -> Iterator[None]:
    """Switch to kernels that have forward-mode derivatives: no fused attention, no fast path of transformers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def call(network: torch.nn.Module, inputs: Any) -> Any:
    """The network's outputs: a tuple of inputs is passed by position, a dict by keyword."""
    if isinstance(inputs, dict):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple) else network(inputs)


def trainable(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that are trained, by the first name of each, detached: a shared one is there once."""
    return {name: value.detach() for name, value in network.named_parameters() if value.requires_grad}


def gradient(network: torch.nn.Module, loss_fn: LossFn, inputs: Any, targets: Any) -> dict[str, torch.Tensor]:
    """The loss's gradient by parameter name, each of its parameter's shape."""
    return torch.func.grad(lambda values: loss_fn(_called(network, values, inputs), targets))(trainable(network))


def example_gradients(network: torch.nn.Module, parts: LossFn, inputs: Any, targets: Any) -> dict[str, torch.Tensor]:
    """The gradient of each example's part of the loss, (example, …) by parameter name; ``parts`` gives (example,)."""
    return _jacobian(lambda values: parts(_called(network, values, inputs), targets))(trainable(network))


def taps(network: torch.nn.Module, inputs: Any) -> list[str]:
    """Names of the modules that own trained parameters and are called, in the order of their first call.

    A module that is never called, such as the output projection of attention, belongs to the one around it. A module
    that holds others of these has parameters of its own beside theirs (a class token): those belong to none.
    """
    names = {module: name for name, module in network.named_modules()}
    called: list[str] = []
    handles = [module.register_forward_pre_hook(lambda m, _: called.append(names[m])) for module in names]
    try:
        with torch.no_grad(), forward_mode():
            call(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    owners = set()
    for module, name in names.items():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            owners.add(max((outer for outer in called if _holds(outer, name)), key=len))
    return [
        name
        for name in dict.fromkeys(called)
        if name in owners and not any(other != name and _holds(name, other) for other in owners)
    ]


def untapped(network: torch.nn.Module, inputs: Any) -> list[str]:
    """Names of the trained parameters that are of no tap."""
    tapped = {p for name in taps(network, inputs) for p in network.get_submodule(name).parameters()}
    return [name for name, p in network.named_parameters() if p.requires_grad and p not in tapped]


def outputs(network: torch.nn.Module, inputs: Any, names: Sequence[str]) -> dict[str, Calls]:
    """The floating-point output tensors of modules, an entry for each call, detached."""
    recorded: dict[str, Calls] = {name: [] for name in names}
    with torch.no_grad(), _adding(network, dict.fromkeys(names), recorded):
        call(network, inputs)
    return {name: [[leaf.detach() for leaf in leaves] for leaves in calls] for name, calls in recorded.items()}


def output_gradients(
    network: torch.nn.Module, loss_fn: LossFn, inputs: Any, targets: Any, names: Sequence[str]
) -> dict[str, Calls]:
    """The loss's gradient by modules' outputs, in the form of `outputs`.

    It is the total derivative: a module's output reaches the loss by every path.
    """
    zeros = pytree.tree_map(torch.zeros_like, outputs(network, inputs, names))
    return torch.func.grad(lambda added: loss_fn(_perturbed(network, inputs, added), targets))(zeros)


def example_output_gradients(
    network: torch.nn.Module, parts: LossFn, inputs: Any, targets: Any, names: Sequence[str]
) -> dict[str, Calls]:
    """The gradient of each example's part of the loss by modules' outputs, each tensor (example, output's shape …).

    Where it is not zero for one example only, the number of the output belongs to that example.
    """
    zeros = pytree.tree_map(torch.zeros_like, outputs(network, inputs, names))
    return _jacobian(lambda added: parts(_perturbed(network, inputs, added), targets))(zeros)


def example_slopes(
    network: torch.nn.Module, parts: LossFn, inputs: Any, targets: Any, perturbations: Mapping[str, Perturbation]
) -> torch.Tensor:
    """The derivative of each example's part of the loss along perturbations of modules' outputs, (example,).

    All modules are perturbed at once, as one forward-mode pass does; ``parts`` gives (example,).
    """
    directions = {name: _calls(value) for name, value in perturbations.items()}
    known = outputs(network, inputs, list(directions))
    zeros = pytree.tree_map(torch.zeros_like, {name: _matched(directions[name], known[name]) for name in directions})
    with forward_mode():
        _, slopes = torch.func.jvp(
            lambda added: parts(_perturbed(network, inputs, added), targets), (zeros,), (directions,)
        )
    return slopes


def jacobian_between(network: torch.nn.Module, inputs: Any, source: str, target: str) -> torch.Tensor:
    """∂ output of ``target`` / ∂ output of ``source``, (target's shape …, source's shape …), by every path between.

    Of modules called once; of a tuple, the first tensor counts.
    """
    (leaves,) = outputs(network, inputs, [source])[source]

    def reached(added: torch.Tensor) -> torch.Tensor:
        recorded: dict[str, Calls] = {target: []}
        with _adding(network, {source: [[added]]}, {}), _adding(network, {target: None}, recorded):
            call(network, inputs)
        ((output, *_),) = recorded[target]
        return output

    return _jacobian(reached)(torch.zeros_like(leaves[0]))


def local_jacobians(network: torch.nn.Module, inputs: Any, name: str) -> dict[str, Calls]:
    """∂ outputs of a module / ∂ its trained parameters, its inputs held, by parameter name in the network.

    In the form of `outputs`, each tensor (output's shape …, parameter's shape …).
    """
    module, names = network.get_submodule(name), _first_names(network, name)
    found: dict[str, Calls] = {names[own]: [] for own in names}
    for arguments, keywords in _arguments(network, inputs, name):
        values = {own: p.detach() for own, p in module.named_parameters() if own in names}
        jacobians = _jacobian(
            lambda v, a=arguments, k=keywords: _floating(torch.func.functional_call(module, v, a, k))
        )(values)
        for own in values:
            found[names[own]].append([leaf[own] for leaf in jacobians])
    return found


def pulled_back(
    network: torch.nn.Module, inputs: Any, at_outputs: Mapping[str, Perturbation]
) -> dict[str, torch.Tensor]:
    """Σ over modules and calls of the local vector–Jacobian product: what ĝ at the outputs makes of Ĝ.

    By parameter name in the network; a parameter of several of the modules has the sum over them.
    """
    total: dict[str, torch.Tensor] = {}
    for name, given in at_outputs.items():
        given = _calls(given)
        for parameter, calls in local_jacobians(network, inputs, name).items():
            for leaves, vectors in zip(calls, given, strict=True):
                for jacobian, vector in zip(leaves, vectors, strict=False):
                    product = torch.tensordot(vector, jacobian, vector.ndim)
                    total[parameter] = total.get(parameter, 0) + product
    return total


def _jacobian(function: Callable[..., Any]) -> Callable[..., Any]:
    # Row by row: some operations have no rule for being batched, and warn.
    return torch.func.jacrev(function, chunk_size=1)


def _called(network: torch.nn.Module, values: Mapping[str, torch.Tensor], inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return torch.func.functional_call(network, dict(values), (), inputs)
    return torch.func.functional_call(network, dict(values), inputs if isinstance(inputs, tuple) else (inputs,))


def _perturbed(network: torch.nn.Module, inputs: Any, added: Mapping[str, Calls]) -> Any:
    with _adding(network, added, {}):
        return call(network, inputs)


@contextmanager
def _adding(network: torch.nn.Module, added: Mapping[str, Calls | None], recorded: dict[str, Calls]) -> Iterator[None]:
    """Add tensors to modules' outputs, call by call, and record the outputs so made."""
    counts = dict.fromkeys(added, 0)

    def hook_of(name: str) -> Callable[..., Any]:
        def hook(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
            leaves, form = pytree.tree_flatten(output)
            floating = [place for place, leaf in enumerate(leaves) if _is_floating(leaf)]
            extra = added[name]
            if extra is not None:
                for place, value in zip(floating, extra[counts[name]], strict=False):
                    leaves[place] = leaves[place] + value
            counts[name] += 1
            if name in recorded:
                recorded[name].append([leaves[place] for place in floating])
            return pytree.tree_unflatten(leaves, form)

        return hook

    handles = [network.get_submodule(name).register_forward_hook(hook_of(name)) for name in added]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _arguments(network: torch.nn.Module, inputs: Any, name: str) -> list[tuple[Any, Any]]:
    seen: list[tuple[Any, Any]] = []
    handle = network.get_submodule(name).register_forward_pre_hook(
        lambda _, arguments, keywords: seen.append((arguments, keywords)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            call(network, inputs)
    finally:
        handle.remove()
    return seen


def _first_names(network: torch.nn.Module, name: str) -> dict[str, str]:
    """Trained parameters below a module: its name for each, and the network's first one."""
    firsts = {parameter: first for first, parameter in network.named_parameters() if parameter.requires_grad}
    own = network.get_submodule(name).named_parameters()
    return {local: firsts[parameter] for local, parameter in own if parameter in firsts}


def _calls(value: Perturbation) -> Calls:
    return [[value]] if isinstance(value, torch.Tensor) else [list(leaves) for leaves in value]


def _matched(directions: Calls, known: Calls) -> Calls:
    """The known outputs that directions are given for; a call too few or many, or another shape, is a mistake."""
    assert len(directions) == len(known), f"{len(known)} calls, perturbations for {len(directions)}"
    for leaves, given in zip(known, directions, strict=True):
        assert [leaf.shape for leaf in leaves[: len(given)]] == [leaf.shape for leaf in given]
    return [leaves[: len(given)] for leaves, given in zip(known, directions, strict=True)]


def _floating(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if _is_floating(leaf)]


def _is_floating(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _holds(outer: str, inner: str) -> bool:
    return outer in ("", inner) or inner.startswith(f"{outer}.")
