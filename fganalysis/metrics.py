"""Metrics in addition to those of every result: a paper's, or your own, registered in one call.

A metric keeps sums over the guesses of a group, computes estimates with intervals from them, and may have predictions.
This is the mean absolute error of an entry of a guess, for guesses made at the activations:

    import numpy as np
    import fganalysis as fga
    from fganalysis import schema
    from fganalysis.estimators.guesses import ActivationEstimates, WeightEstimates

    def keep(snapshot, guesses):  # sums over the guesses of one block, a tensor a layer; nothing for other guesses
        if not isinstance(guesses, ActivationEstimates):
            return ()
        pairs = zip(guesses.guesses, snapshot.gradients)
        return tuple((guess - gradient).abs().mean((1, 2)).double().sum() for guess, gradient in pairs)

    def estimates(snapshot, groups):
        layers = np.stack([*groups.averages(), np.full(len(groups.sizes), np.nan)])  # (layer, group), "all" is NaN
        return {"mean_absolute_error": fga.metrics.mean_of_groups(layers, groups.sizes)}

    error = schema.Variable("mean absolute error of an entry of a guess", schema.GRADIENT_UNITS, (schema.LAYER,))
    fga.register_metric(fga.metrics.Metric("absolute_error", {"mean_absolute_error": error}, keep, estimates))

A variable over (layer,) is one at the activations. A variable of guesses made at the weights is over (space, layer),
NaN in the space in which nothing is kept; here the same error, of one weight:

    def keep_at_weights(snapshot, guesses):
        if not isinstance(guesses, WeightEstimates):
            return ()
        written = [c[:, None, None] * v for c, v in zip(guesses.coefficients.T, guesses.directions)]
        pairs = zip(written, snapshot.weight_gradients)
        return tuple((guess - gradient).abs().mean((1, 2)).double().sum() for guess, gradient in pairs)

    def estimates_at_weights(snapshot, groups):
        layers = np.stack([*groups.averages(), np.full(len(groups.sizes), np.nan)])
        spaces = np.stack([np.full_like(layers, np.nan), layers])  # (space, layer, group): activation, weight
        return {"weight_error": fga.metrics.mean_of_groups(spaces, groups.sizes)}

    error = schema.Variable("mean absolute error of a guess at a weight", schema.GRADIENT_UNITS)
    fga.register_metric(fga.metrics.Metric("weights", {"weight_error": error}, keep_at_weights, estimates_at_weights))

From then on `fga.sample` and `fga.diagnose` report both variables with error, interval and flags, and
`fga.summary(tree, ["mean_absolute_error"])` shows one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fganalysis.arguments import check_callable, check_kind, check_names, described
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import Estimates, Sums
from fganalysis.results import schema
from fganalysis.results.schema import Variable
from fganalysis.statistics.intervals import Array, Estimate, mean
from fganalysis.statistics.squared_norm import LEAST_GROUPS


@dataclass(frozen=True)
class Groups:
    """The numbers of a sample from which a metric makes its estimates.

    Attributes:
        sizes: guesses in each group, (group,).
        means: the mean guess of each group in the form of `Estimates.total`, a tensor for each tap.
        kept: the sums of the metric's ``keep`` over the guesses of each group.
        estimates: the quantities that every result has, (space, layer).
    """

    sizes: Array
    means: Sequence[Sums]
    kept: Sequence[Sums]
    estimates: Mapping[str, Estimate]

    def averages(self) -> list[Array]:
        """What was kept, a guess: (group, …) for each tensor of ``keep``."""
        parts = zip(*self.kept, strict=True)
        return [
            np.stack([total.cpu().numpy() / size for total, size in zip(part, self.sizes, strict=True)])
            for part in parts
        ]


@dataclass(frozen=True)
class Metric:
    """A metric; see the module's text for an example.

    Attributes:
        name: of the metric; registering another metric under the same name replaces it.
        variables: name → `schema.Variable` of each estimated quantity, over (space, layer), or (layer,) at the
            activations.
        keep: (snapshot, guesses of one block) → a tuple of tensors in double precision that are sums over these
            guesses, of the same shapes for every block; an empty tuple where the metric has nothing to say of such
            guesses. Blocks are drawn by several threads.
        estimates: (snapshot, `Groups`) → name → `Estimate`, all layers together last; not called where nothing was
            kept.
        theory: (snapshot, `fganalysis.predictions.Guess`) → name → array of the variable's shape, NaN where unknown.
        exact: name → `schema.Variable` of what theory alone says, without sampling.
        compared: which of the variables `z_scores` and `agreement` compare with their predictions.
    """

    name: str
    variables: Mapping[str, Variable]
    keep: Callable[[Snapshot, Estimates], Sums]
    estimates: Callable[[Snapshot, Groups], Mapping[str, Estimate]]
    theory: Callable[[Snapshot, Any], Mapping[str, Array]] | None = None
    exact: Mapping[str, Variable] = field(default_factory=dict)
    compared: Sequence[str] = ()

    def kept(self, snapshot: Snapshot, guesses: Estimates) -> Sums:
        """What the metric keeps of a block. Raises ValueError for what are no tensors in double precision."""
        sums: object = self.keep(snapshot, guesses)
        whole = isinstance(sums, tuple) and all(
            isinstance(part, Tensor) and part.dtype == torch.float64 for part in sums
        )
        if not whole:
            raise ValueError(f"the metric {self.name!r} must keep a tuple of float64 tensors, got {described(sums)}")
        assert isinstance(sums, tuple)
        return sums

    def estimated(self, snapshot: Snapshot, groups: Groups) -> dict[str, Estimate]:
        """Every variable of the metric, NaN without anything kept.

        Raises ValueError for another name or shape, and for a variable over (layer,) of guesses made at the weights.
        """
        estimates = self.estimates(snapshot, groups) if groups.kept and groups.kept[0] else {}
        shapes = {name: _shape(snapshot, variable) for name, variable in self.variables.items()}
        for name, estimate in estimates.items():
            if name not in shapes:
                raise ValueError(f"the metric {self.name!r} has estimated {name!r}, which is none of its variables")
            shape = np.shape(estimate.value) if isinstance(estimate, Estimate) else None
            if shape != shapes[name]:
                got = described(estimate) if shape is None else f"the shape {shape}"
                expected = f"an Estimate of shape {shapes[name]} for {name!r}"
                raise ValueError(f"the metric {self.name!r} must give {expected}, got {got}")
            at_weights = _only_at_weights(groups) and not np.isnan(estimate.value).all()
            if at_weights and self.variables[name].dims == DIMS[1:]:
                # A table shows a variable without a space in the rows of the activations, which such guesses lack.
                what = f"the metric {self.name!r} has estimated {name!r}, a variable at the activations,"
                way_out = "give the variable the dims ('space', 'layer')"
                raise ValueError(f"{what} of guesses made at the weights: {way_out}")
        return {name: estimates.get(name, Estimate.missing(shape)) for name, shape in shapes.items()}

    def predicted(self, snapshot: Snapshot, guess: Any) -> dict[str, Array]:
        """What theory says. Raises ValueError for an unknown name or another shape."""
        known = {**self.variables, **self.exact}
        predictions = {} if self.theory is None else dict(self.theory(snapshot, guess))
        for name, values in predictions.items():
            if name not in known:
                raise ValueError(f"the theory of the metric {self.name!r} names {name!r}, not a variable of the metric")
            if np.shape(values) != _shape(snapshot, known[name]):
                shape = f"shape {_shape(snapshot, known[name])}, got {np.shape(values)}"
                raise ValueError(f"the theory of the metric {self.name!r} must give {name!r} in {shape}")
        return predictions


def _only_at_weights(groups: Groups) -> bool:
    """Whether the guesses were made at the weights: they have no error at the activations."""
    activation, weight = (np.isnan(errors).all() for errors in groups.estimates["mse"].value)
    return bool(activation and not weight)


def mean_of_groups(values: Array, sizes: Array) -> Estimate:
    """The mean over guesses with its interval, from means over groups, (…, group), and the sizes of groups, (group,).

    Error and bounds are NaN for fewer than 4 groups or 32 guesses. For fewer than 256 guesses the interval is widened.
    """
    weights = sizes / sizes.sum()
    middle = (weights * values).sum(-1)
    if len(sizes) < LEAST_GROUPS:
        missing = Estimate.missing(middle.shape)
        return Estimate(middle, missing.se, missing.low, missing.high)
    # Equal groups are the values themselves; a group of fewer guesses counts less.
    influence = middle[..., None] + len(sizes) * weights * (values - middle[..., None])
    return mean(influence).of_few(int(sizes.sum()))


def registered() -> tuple[Metric, ...]:
    """Every metric, in the order in which they were registered."""
    return tuple(METRICS.values())


def register_metric(metric: Metric) -> None:
    """Adds a metric to everything that is sampled and predicted from then on; see the module's text for an example.

    Another metric of the same name is replaced. To read a stored result that has a metric's variables, register the
    metric first.

    Raises:
        ValueError: what is no `Metric`, a wrong field of it, or a variable that something else has.
    """
    check_kind("metric", metric, Metric, "a fganalysis.metrics.Metric")
    check_kind("the name of a metric", metric.name, str, "a text")
    _check_variables(metric)
    check_callable(f"keep of the metric {metric.name!r}", metric.keep, "a function of (snapshot, guesses)", 2)
    check_callable(f"estimates of the metric {metric.name!r}", metric.estimates, "a function of (snapshot, groups)", 2)
    if metric.theory is not None:
        check_callable(f"theory of the metric {metric.name!r}", metric.theory, "a function of (snapshot, guess)", 2)
    replaced = METRICS.get(metric.name)
    taken = _names(metric) & set(schema.variables()) - (set() if replaced is None else _names(replaced))
    if taken:
        raise ValueError(f"the metric {metric.name!r} has the variable {min(taken)!r}, which results have already")
    withdraw_metric(metric.name)
    schema.QUANTITIES.update(metric.variables)
    schema.EXACT.update(metric.exact)
    schema.ALSO_COMPARED.extend(metric.compared)
    METRICS[metric.name] = metric


def withdraw_metric(name: str) -> None:
    """Removes a metric, by its name. Does nothing if there is no metric of this name."""
    metric = METRICS.pop(name, None)
    if metric is not None:
        for variable in metric.variables:
            del schema.QUANTITIES[variable]
        for variable in metric.exact:
            del schema.EXACT[variable]
        for variable in metric.compared:
            schema.ALSO_COMPARED.remove(variable)


def _check_variables(metric: Metric) -> None:
    for what, given in (("variables", metric.variables), ("exact", metric.exact)):
        check_kind(f"{what} of the metric {metric.name!r}", given, Mapping, "a mapping from names to schema.Variable")
        for name, variable in given.items():
            check_kind("the name of a variable", name, str, "a text")
            check_kind(f"the variable {name!r}", variable, Variable, "a fga.schema.Variable")
            if variable.dims not in (DIMS, DIMS[1:]):
                dims = "('space', 'layer') or ('layer',)"
                raise ValueError(f"the variable {name!r} must have the dims {dims}, got {described(variable.dims)}")
    if not metric.variables and not metric.exact:
        raise ValueError(f"the metric {metric.name!r} has no variable")
    if metric.compared:
        check_names(f"compared of the metric {metric.name!r}", metric.compared, metric.variables)


def _names(metric: Metric) -> set[str]:
    """Of all variables in a result, with those beside them."""
    return {*metric.exact, *(name + suffix for name in metric.variables for suffix in ("", *schema.BESIDE))}


def _shape(snapshot: Snapshot, variable: Variable) -> tuple[int, ...]:
    shape = (len(schema.SPACES), len(snapshot.layers) + 1)
    return shape[len(shape) - len(variable.dims) :]


DIMS = (schema.SPACE, schema.LAYER)
METRICS: dict[str, Metric] = {}
