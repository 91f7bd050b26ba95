"""The cells of `studies.guess_target`: one network measured at several steps, and one training run.

    estimate of tap l = ⟨target, guess⟩ guess / ‖guess‖²        per example (activation) or of the weights (weight)

Target and guess are each a gradient at the taps: the loss's own, one of an auxiliary head, or, as a guess, noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, Backpropagation, Estimator, LocalLoss, WeightPerturbation
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, WeightEstimates
from fganalysis.estimators.local import heads
from fganalysis.estimators.noise import GAUSSIAN, Sphere
from fganalysis.results import schema
from fganalysis.training.checkpoints import load_checkpoint, load_estimator_state
from studies.kit import kept_data, resumed
from studies.kit.devices import on
from theory import projection as theory

Array = NDArray[np.float64]
KINDS: tuple[heads.Kind, ...] = ("linear", "mlp", "cnn")
TARGETS = ("global", "local")
PROJECTIONS = ("activation", "weight")
HEADS = (*(f"{kind} head" for kind in KINDS), *(f"{kind} frozen" for kind in KINDS))
NOISE = ("random", "live")  # Of every unit, and of units with φ' ≠ 0 alone, where every head's guess is.
GUESSES = ("gradient", *HEADS, *NOISE)
HIDDEN = "hidden"  # Every tap but the last, where the loss itself is the head and the guess exact.
FROZEN_SEED = 1000  # Added to the seed: frozen heads are not the ones that the trained ones began with.
QUANTITIES = {
    "cosine": "mean cosine of the estimate with the loss's gradient",
    "relative_bias": "norm of the bias over norm of the loss's gradient",
    "efficiency": "fraction of the exact step's progress at the best step size",
    "shrinkage": "mean inner product with the loss's gradient over its squared norm",
}


@dataclass(frozen=True)
class Network:
    """Which network is trained and how it is measured; the settings that a cell depends on."""

    seed: int
    width: int
    mlp_width: int
    cnn_channels: int
    rate: float
    epochs: tuple[int, ...]
    batch: int
    guesses: int
    device: str = "cpu"


@dataclass(frozen=True)
class Training:
    """Which run; ``way`` is a key of `ways`."""

    way: str
    seed: int
    width: int
    mlp_width: int
    rate: float
    epochs: int
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class WithHeads:
    """Backpropagation for the network, with auxiliary heads that learn beside it, step by step."""

    heads: tuple[LocalLoss, ...]

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        return Backpropagation()(snapshot, n_guesses, generator)

    def initialised(self, snapshot: Snapshot) -> WithHeads:
        return WithHeads(tuple(head.initialised(snapshot) for head in self.heads))

    def advanced(self, snapshot: Snapshot, generator: torch.Generator) -> WithHeads:
        return WithHeads(tuple(head.advanced(snapshot, generator) for head in self.heads))

    def state(self) -> dict[str, Tensor]:
        return {f"{head.head}.{name}": tensor for head in self.heads for name, tensor in head.state().items()}

    def with_state(self, state: dict[str, Tensor]) -> WithHeads:
        own = [{n.removeprefix(f"{h.head}."): t for n, t in state.items() if n.startswith(h.head)} for h in self.heads]
        return WithHeads(tuple(head.with_state(part) for head, part in zip(self.heads, own, strict=True)))


@dataclass(frozen=True, eq=False)
class Projected:
    """A target's normalised projection on a guess, both (example, unit) for every tap but the last.

    ``guess`` None: noise of its own for every guess, at the activations of every example or at the weights of a tap;
    with ``masks``, (example, unit) a tap, at the activations that they keep, wherever it is projected.
    """

    target: tuple[Tensor, ...]
    guess: tuple[Tensor, ...] | None
    projection: str
    masks: tuple[Tensor, ...] | None = None

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        if self.projection == "activation":
            return ActivationEstimates((*self._at_activations(n_guesses, generator), self._exact(snapshot, n_guesses)))
        images = [target.T @ tap.inputs for target, tap in zip(self.target, snapshot.taps, strict=False)]
        if self.guess is not None or self.masks is not None:
            guesses = []
            for image, guess, tap in zip(images, self._directions(n_guesses, generator), snapshot.taps, strict=False):
                along = guess.mT @ tap.inputs
                slope = _ratio((image * along).sum((1, 2)), along.square().sum((1, 2)))
                guesses.append(slope[:, None, None] * guess)
            return ActivationEstimates((*guesses, self._exact(snapshot, n_guesses)))
        drawn = [GAUSSIAN.draw((n_guesses, *image.shape), generator, image, vector_dims=2) for image in images]
        pairs = zip(images, drawn, strict=True)
        slopes = [_ratio((image * along).sum((1, 2)), along.square().sum((1, 2))) for image, along in pairs]
        exact = snapshot.weight_gradients[-1]
        coefficients = torch.stack([*slopes, slopes[0].new_ones(n_guesses)], dim=1)
        return WeightEstimates(coefficients, (*drawn, exact.expand(n_guesses, -1, -1)))

    def _at_activations(self, n_guesses: int, generator: torch.Generator) -> list[Tensor]:
        pairs = zip(self.target, self._directions(n_guesses, generator), strict=True)
        return [_ratio((t * v).sum(-1, keepdim=True), v.square().sum(-1, keepdim=True)) * v for t, v in pairs]

    def _directions(self, n_guesses: int, generator: torch.Generator) -> list[Tensor]:
        """(guess, example, unit) a tap."""
        if self.guess is not None:
            return [each.expand(n_guesses, -1, -1) for each in self.guess]
        drawn = [GAUSSIAN.draw((n_guesses, *each.shape), generator, each) for each in self.target]
        return drawn if self.masks is None else [noise * mask for noise, mask in zip(drawn, self.masks, strict=True)]

    def _exact(self, snapshot: Snapshot, n_guesses: int) -> Tensor:
        return snapshot.gradients[-1].expand(n_guesses, -1, -1)


def _ratio(inner: Tensor, square: Tensor) -> Tensor:
    """Zero where a guess is."""
    return inner / torch.where(square > 0, square, 1.0)


def measured(of: Network, scratch: Path) -> xr.Dataset:
    """Every quantity over (step, guess, target, projection, space, layer), and the network's accuracy over (step)."""
    data = on(of.device, kept_data.load("mnist1d"))
    widths = {"linear": None, "mlp": of.mlp_width, "cnn": of.cnn_channels}
    along = WithHeads(tuple(_trained_head(kind, widths[kind], of) for kind in KINDS))
    steps = [epoch * -(-len(data.train_inputs) // 512) for epoch in of.epochs]
    batch = data.batch(of.batch)
    run = resumed.train(
        _network(of),
        data,
        along,
        scratch,
        epochs=max(of.epochs),
        optimizer=partial(torch.optim.Adam, lr=of.rate),
        seed=of.seed,
        checkpoints=steps,
        log_every=max(1, min(steps[1:], default=1)),
    )
    rows = []
    for step in steps:
        load_checkpoint(run.checkpoints[step], run.network)
        snapshot = fga.capture(run.network, torch.nn.functional.cross_entropy, *batch, step=step)
        state = {name: part.to(of.device) for name, part in load_estimator_state(run.checkpoints[step]).items()}
        rows.append(_at_step(snapshot, along.with_state(state), of))
    dataset = xr.concat(rows, dim="step", data_vars="all").assign_coords(step=steps)
    log = run.log.sel(step=steps)
    return dataset.assign(accuracy=log["train_accuracy"], loss=log["loss"])


def _trained_head(kind: heads.Kind, width: int | None, of: Network | Training) -> LocalLoss:
    return LocalLoss(kind, mode="trained", width=width, seed=of.seed, rate=of.rate)


def _network(of: Network | Training) -> torch.nn.Module:
    sizes = [40, of.width, of.width, of.width, 10]
    network: torch.nn.Module = fga.networks.mlp(sizes, bias=False, seed=of.seed)
    return network.to(of.device)


def directions(snapshot: Snapshot, along: WithHeads) -> dict[str, tuple[Tensor, ...] | None]:
    """Each guess of `GUESSES`, (example, unit) for every tap but the last."""
    found: dict[str, tuple[Tensor, ...] | None] = {"gradient": snapshot.gradients[:-1], "random": None, "live": None}
    for head in along.heads:
        # With its own gradient for a target, what a head projects is that gradient.
        trained = replace(head, target="local")
        frozen = replace(trained, mode="frozen", seed=head.seed + FROZEN_SEED, optimiser=None)
        for name, estimator in ((f"{head.head} head", trained), (f"{head.head} frozen", frozen)):
            guesses = estimator(snapshot, 1, torch.Generator(snapshot.device)).guesses
            found[name] = tuple(guess[0] for guess in guesses[:-1])
    return found


def _at_step(snapshot: Snapshot, along: WithHeads, of: Network) -> xr.Dataset:
    known = directions(snapshot, along)
    live = tuple((jacobian.derivative != 0).to(jacobian.derivative) for jacobian in snapshot.upstream)
    found = {}
    for guess in GUESSES:
        # Of a head's guess, frozen or not, the local target is the trained head of its kind; else that of the linear.
        own = f"{guess.split()[0]} head" if guess.split()[0] in KINDS else "linear head"
        for target in TARGETS:
            wanted = known["gradient" if target == "global" else own]
            assert wanted is not None
            for projection in PROJECTIONS:
                estimator = Projected(wanted, known[guess], projection, live if guess == "live" else None)
                drawn = of.guesses if known[guess] is None else 4
                sampled = fga.sample(
                    snapshot, estimator, drawn, of.seed, block_size=None if known[guess] is None else 1, workers=1
                )
                found[guess, target, projection] = _quantities(sampled, snapshot.layers[:-1])
    names = {"guess": list(GUESSES), "target": list(TARGETS), "projection": list(PROJECTIONS)}
    nested = [[[found[g, t, p] for p in PROJECTIONS] for t in TARGETS] for g in GUESSES]
    dataset = xr.combine_nested(nested, concat_dim=list(names), data_vars="all").assign_coords(names)
    sizes = [tap.weight.numel() for tap in snapshot.taps[:-1]]
    isotropic = [theory.mean_cosine(1, size) for size in sizes] + [np.nan]
    return dataset.assign(isotropic_cosine=("layer", np.array(isotropic)))


def _quantities(sampled: xr.Dataset, hidden: tuple[str, ...]) -> xr.Dataset:
    """`QUANTITIES` over (space, layer): every hidden tap's, and all of them as one vector."""
    part = sampled.sel(layer=list(hidden))
    inner, square = (_with_sum(part[name].values) for name in ("inner_product", "squared_norm"))
    squared_bias, exact = (
        _with_sum(values) for values in (part["squared_bias"].values, part["gradient_norm"].values ** 2)
    )
    # A head whose units are all dead guesses zero, which has no cosine and makes no progress: both are 0.
    cosine = inner / np.sqrt(np.where(square != 0, square * exact[..., None], 1.0))
    mean, mean_square = inner.mean(-1), square.mean(-1)
    found = {
        "cosine": cosine.mean(-1),
        "relative_bias": np.sqrt(squared_bias.clip(min=0) / exact),
        "efficiency": mean**2 / np.where(mean_square != 0, exact * mean_square, 1.0),
        "shrinkage": mean / exact,
    }
    coordinates = {"space": list(schema.SPACES), "layer": [*hidden, HIDDEN]}
    return xr.Dataset({name: (("space", "layer"), values) for name, values in found.items()}, coords=coordinates)


def _with_sum(values: Array) -> Array:
    """(space, layer, …) with the sum over layers as one more layer."""
    return np.concatenate([values, values.sum(1, keepdims=True)], axis=1)


def ways(of: Training) -> dict[str, Estimator]:
    """What networks are trained with: target, guess, space."""

    linear, mlp = _trained_head("linear", None, of), _trained_head("mlp", of.mlp_width, of)
    return {
        "backpropagation": Backpropagation(),
        "global, linear head, activation": linear,
        "global, linear head, weight": replace(linear, space="weight"),
        "global, mlp head, activation": mlp,
        "global, linear frozen, activation": replace(linear, mode="frozen"),
        "global, random, activation": ActivityPerturbation(noise=Sphere(), layers="separate"),
        "global, random, weight": WeightPerturbation(noise=Sphere(), layers="separate"),
        "local, linear head": replace(linear, target="local"),
        "local, mlp head": replace(mlp, target="local"),
        "local, linear frozen, activation": replace(linear, target="local", mode="frozen"),
    }


def trained(of: Training, scratch: Path) -> xr.Dataset:
    """Accuracy on the training and the test set over (step)."""
    data = on(of.device, kept_data.load("mnist1d"))
    per_epoch = -(-len(data.train_inputs) // 512)
    run = resumed.train(
        _network(of),
        data,
        ways(of)[of.way],
        scratch,
        epochs=of.epochs,
        optimizer=partial(torch.optim.Adam, lr=of.rate),
        seed=of.seed,
        log_every=max(1, of.epochs // 5) * per_epoch,
    )
    return run.log[["train_accuracy", "test_accuracy"]]


def cell_name(of: Network | Training) -> str:
    """Where a cell lies in the study's folder."""
    if isinstance(of, Network):
        return f"cells/network_seed_{of.seed}"
    return f"cells/training_{of.way.replace(', ', '_').replace(' ', '_')}_seed_{of.seed}"
