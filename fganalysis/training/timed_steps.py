"""Training steps that can be run again and again on one network and one batch, as `train` makes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fganalysis.capturing.batch import called
from fganalysis.capturing.capture import checked_for_training, freeze
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Autodiff, Loss
from fganalysis.estimators import Backpropagation, Estimator, Stateful
from fganalysis.training.estimated_gradients import Untapped, fill_gradients
from fganalysis.training.timing import Step

GRADIENT_TOLERANCE = 1e-3  # Relative error of a gradient with checkpointing; anything beyond is another gradient.


@dataclass(frozen=True, eq=False)
class OneBatch:
    """What every step is made of; the optimiser is of the network's parameters.

    Raises:
        ValueError: from `checked` and what needs it, for a network or a loss that cannot be measured.
    """

    network: torch.nn.Module
    loss_fn: Loss
    inputs: Any
    targets: Any
    optimizer: torch.optim.Optimizer
    autodiff: Autodiff = "reverse"

    @cached_property
    def checked(self) -> Snapshot:
        """What `train` finds out before its first step."""
        return checked_for_training(self.network, self.loss_fn, self.inputs, self.targets, autodiff=self.autodiff)

    def backpropagation(self, network: torch.nn.Module | None = None) -> Step:
        """A step of plain backpropagation; ``network`` is another way through the same parameters."""
        through = self.network if network is None else network

        def step() -> None:
            self.optimizer.zero_grad()
            self.loss_fn(called(through, self.inputs), self.targets).backward()
            self.optimizer.step()

        return step

    def estimated(
        self, estimator: Estimator, generator: torch.Generator, n_guesses: int = 1, untapped: Untapped = "refuse"
    ) -> Step:
        """A step along an estimate, and the learning of an estimator that learns. A step raises as `fill_gradients`."""
        if isinstance(estimator, Backpropagation):
            return self.backpropagation()
        batch = (self.network, self.loss_fn, self.inputs, self.targets)
        if isinstance(estimator, Stateful):
            estimator = estimator.initialised(self.checked)

        def step() -> None:
            nonlocal estimator
            self.optimizer.zero_grad()
            snapshot = freeze(*batch, autodiff=self.autodiff, step=0, plan=self.checked.plan)
            fill_gradients(snapshot, estimator, n_guesses, generator, untapped=untapped)
            if isinstance(estimator, Stateful):
                estimator = estimator.advanced(snapshot, generator)
            self.optimizer.step()

        return step

    def checkpointed(self) -> Step:
        """A step of backpropagation that keeps the inputs of the network's parts alone, and runs each part again.

        Raises:
            ValueError: a network without parts, parts that cannot run twice, or another gradient that way.
        """
        network = with_checkpoints(self.network)
        plain, again = self._gradient(self.network), self._gradient(network)
        for name, gradient in plain.items():
            size = float(torch.linalg.vector_norm(gradient))
            if not float(torch.linalg.vector_norm(again[name] - gradient)) <= GRADIENT_TOLERANCE * size:
                raise ValueError(
                    f"with activation checkpointing the gradient of {name!r} is another, as a part that runs twice "
                    "does not return the same twice"
                )
        return self.backpropagation(network)

    def _gradient(self, network: torch.nn.Module) -> dict[str, Tensor]:
        parameters = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        try:
            loss = self.loss_fn(called(network, self.inputs), self.targets)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(
                f"activation checkpointing fails on this network with {type(error).__name__}, as for parts that change "
                "what they read"
            ) from error
        return {name: part for name, part in zip(parameters, found, strict=True) if part is not None}


def with_checkpoints(network: torch.nn.Module) -> torch.nn.Module:
    """The network around the same parameters, each of whose parts keeps its inputs alone and runs again backward.

    The parts of an `nn.Sequential` are about √n runs of its n modules, which keeps the least. Those of any other
    network are its children; a list of modules, which is not called itself, counts as its members.

    Raises:
        ValueError: a network without parts.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied = copy.deepcopy(network, shared)
    whole = copied
    while len(children := list(whole.children())) == 1 and not isinstance(whole, torch.nn.Sequential):
        whole = children[0]
    if isinstance(whole, torch.nn.Sequential) and len(whole) > 2:
        whole.forward = _in_segments(list(whole))  # type: ignore[method-assign]
        return copied
    parts = [part for child in whole.children() for part in _called(child)]
    if len(parts) < 2:
        raise ValueError("activation checkpointing needs a network of several modules: this one has no parts")
    for part in parts:
        part.forward = _kept(part.forward)
    return copied


def _in_segments(modules: list[torch.nn.Module]) -> Callable[[Tensor], Tensor]:
    length = max(2, round(len(modules) ** 0.5))
    segments = [torch.nn.Sequential(*modules[i : i + length]) for i in range(0, len(modules), length)]

    def forward(inputs: Tensor) -> Tensor:
        for segment in segments:
            inputs = _kept(segment.__call__)(inputs)
        return inputs

    return forward


def _called(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The module, or the members of a list of modules."""
    if isinstance(module, torch.nn.ModuleList | torch.nn.ModuleDict):
        return [part for child in module.children() for part in _called(child)]
    return [module]


def _kept(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **keywords: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False, **keywords)

    return run
