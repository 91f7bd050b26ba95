"""Hypothesis strategies for property tests of estimators: networks, batches, snapshots, noise laws, estimators, seeds.

This is a property test of your own estimator in five lines; docs/is_it_unbiased.md is a worked example. alpha is small
because hypothesis tries many networks. There is no deadline and no shrinking, because a call takes a fraction of a
second:

    @settings(max_examples=20, deadline=None, phases=[Phase.generate])
    @given(snapshot=strategies.snapshots(), seed=strategies.seeds())
    def test_my_estimator_is_unbiased(snapshot, seed):
        mine = MyEstimator()
        assert_unbiased(mine, snapshot, alpha=1e-6, max_guesses=2**12, seed=seed, may_be_undecided=True)

Everything is in double precision and tiny, so that a property holds to rounding and a failing case shrinks to a few
numbers. Hypothesis does not seed torch: every seed is drawn as a whole number and printed with a failure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import assume, strategies
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from fganalysis.arguments import check_names
from fganalysis.capturing.capture import capture
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ESTIMATORS, Estimator
from fganalysis.estimators.noise import Gaussian, Noise, Rademacher, Sphere
from fganalysis.training.networks import mlp

ACTIVATIONS = (torch.nn.ReLU, torch.nn.Tanh, torch.nn.Softplus, torch.nn.GELU)


def seeds() -> SearchStrategy[int]:
    """Whole numbers from 0 to 2³² − 1."""
    return strategies.integers(0, 2**32 - 1)


def generators() -> SearchStrategy[torch.Generator]:
    """Torch generators on the CPU, each seeded by one of `seeds`."""
    return seeds().map(lambda seed: torch.Generator().manual_seed(seed))


def noise_laws() -> SearchStrategy[Noise]:
    """Every law of `fganalysis.estimators.noise`."""
    return strategies.sampled_from((Gaussian(), Rademacher(), Sphere()))


@strategies.composite
def networks(draw: DrawFn, max_units: int = 4, min_layers: int = 2, max_layers: int = 3) -> torch.nn.Sequential:
    """MLPs of layers of 1 to ``max_units`` units, with biases or without, in double precision."""
    sizes = draw(strategies.lists(strategies.integers(1, max_units), min_size=min_layers + 1, max_size=max_layers + 1))
    activation = draw(strategies.sampled_from(ACTIVATIONS))
    return mlp(sizes, bias=draw(strategies.booleans()), seed=draw(seeds()), activation=activation, dtype=torch.float64)


@strategies.composite
def batches(draw: DrawFn, n_inputs: int, n_outputs: int, max_examples: int = 4) -> tuple[Tensor, Tensor]:
    """Normal inputs (example, ``n_inputs``) and normal targets (example, ``n_outputs``)."""
    generator, n_examples = draw(generators()), draw(strategies.integers(1, max_examples))
    inputs = torch.randn(n_examples, n_inputs, generator=generator, dtype=torch.float64)
    targets = torch.randn(n_examples, n_outputs, generator=generator, dtype=torch.float64)
    return inputs, targets


@strategies.composite
def snapshots(
    draw: DrawFn, max_units: int = 4, min_layers: int = 2, max_layers: int = 3, max_examples: int = 4
) -> Snapshot:
    """One of `networks` on one of `batches`, with the squared error or the cross-entropy with random classes.

    No tap has a gradient of zero, where relative quantities have no meaning.
    """
    network = draw(networks(max_units, min_layers, max_layers))
    linear = [module for module in network if isinstance(module, torch.nn.Linear)]
    inputs, targets = draw(batches(linear[0].in_features, linear[-1].out_features, max_examples))
    if linear[-1].out_features > 1 and draw(strategies.booleans()):
        snapshot = capture(network, torch.nn.functional.cross_entropy, inputs, targets.argmax(1))
    else:
        snapshot = capture(network, torch.nn.functional.mse_loss, inputs, targets)
    assume(all(float(gradient.norm()) > 1e-6 for gradient in snapshot.weight_gradients))
    return snapshot


def estimators(keys: Sequence[str] | None = None) -> SearchStrategy[Estimator]:
    """Instances from `ESTIMATORS` with random settings that are valid on every one of `snapshots`.

    A field that has no strategy here keeps its default.

    Args:
        keys: of the estimators; by default all that have defaults for all settings.

    Raises:
        ValueError: no list of keys, an unknown key, or none.
    """
    if keys is not None:
        check_names("keys", keys, ESTIMATORS)
    chosen = [key for key in ESTIMATORS if _has_defaults(key)] if keys is None else keys
    return strategies.one_of([_instances(key) for key in chosen])


def _has_defaults(key: str) -> bool:
    missing = dataclasses.MISSING
    fields = dataclasses.fields(ESTIMATORS[key])
    return all(field.default is not missing or field.default_factory is not missing for field in fields)


def _instances(key: str) -> SearchStrategy[Any]:
    by_field: dict[str, SearchStrategy[Any]] = {
        "noise": noise_laws(),
        "shared": strategies.booleans(),
        "slope": strategies.sampled_from(("example", "batch")),
        "layers": strategies.sampled_from(("joint", "separate")),
        "active_only": strategies.booleans(),
        "normalise": strategies.booleans(),
        "which": strategies.sampled_from(("top", "bottom")),
        "exact": strategies.booleans(),
        "combine": strategies.sampled_from(("mean", "orthogonal")),
        "central": strategies.booleans(),
        "epsilon": strategies.sampled_from((1e-4, 1e-3, 1e-2)),
        # More directions or rows than one are more than the smallest network or batch has.
        "size": strategies.just(1),
        "k": strategies.sampled_from((1, "rank")) if key == "orthogonal" else strategies.just(1),
    }
    names = {field.name for field in dataclasses.fields(ESTIMATORS[key])}
    return strategies.builds(ESTIMATORS[key], **{name: law for name, law in by_field.items() if name in names})
