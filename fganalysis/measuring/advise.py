"""advise(): which step size, how many guesses a step, which ε: sentences from the numbers of other Datasets.

Source: docs/mathematics.md#how-many-guesses-a-step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from fganalysis.arguments import check_kind, check_number, check_whole, listed
from fganalysis.measuring.advising.advice import BOUNDED_COLUMNS, Advice, columns
from fganalysis.measuring.advising.bounded import MISSING
from fganalysis.measuring.advising.of_differences import of_differences
from fganalysis.measuring.advising.of_noise import guesses_for_cosine, noisiest_layer, unbiased_by_diagnosis
from fganalysis.measuring.advising.of_steps import balanced_guesses, best_priced_guesses, step_size, steps_for_one
from fganalysis.measuring.progress_per_cost import progress_per_cost
from fganalysis.results import schema
from fganalysis.results.tables import node

PROGRESS_WORDS = "the Dataset that fga.progress returns"
READ_OF_PROGRESS = (
    *(name + part for name in schema.PROGRESS_PREDICTED for part in ("", schema.LOW, schema.HIGH)),
    *("unseen_curvature" + part for part in ("", schema.LOW, schema.HIGH)),
    *("gradient_step", "gradient_curvature", "squared_gradient"),
)
BOUNDED_OF_DIFFERENCES = ("best_epsilon", "least_slope_error")
READ_OF_DIFFERENCES = (
    *(name + part for name in BOUNDED_OF_DIFFERENCES for part in ("", schema.LOW, schema.HIGH)),
    *("kinks", "drift", "unmoved"),
)
BOUNDED_OF_DIAGNOSIS = ("efficiency", "directional_bias", "variance")
READ_OF_COST = ("passes", *("seconds" + part for part in ("", schema.LOW, schema.HIGH)))


def advise(
    results: xr.Dataset | xr.DataTree,
    *,
    diagnosis: xr.DataTree | None = None,
    cost: xr.Dataset | None = None,
    differences: xr.Dataset | None = None,
    target_cosine: float = 0.1,
    averaged: int = 1,
) -> Advice:
    """Says which step size suits each estimator, how many guesses a step are worth it, and which ε.

    Measures nothing: every sentence has its number from one of the Datasets, and names its interval. A number is
    advised where it is within a factor of 2 of its whole interval; elsewhere a sentence says why it is not. So it is
    with slopes or curvatures that may be zero, and with a step over which the loss curves twice as much as its
    curvature says, or half as much, as it may by kinks.

    Args:
        results: what `fganalysis.progress` returns, or what `fganalysis.diagnose` returns: without curvature there is
            no step size.
        diagnosis: of the same steps and estimators as ``results`` of `fganalysis.progress`: guesses for a cosine,
            and which layers hold the noise.
        cost: of the same estimators by `fganalysis.cost`, with ``averaged`` among its numbers of guesses; with two of
            these or more, the number of guesses of the most progress for its price.
        differences: what `fganalysis.difference_step` returns: ε and the drift.
        target_cosine: of the mean of several guesses with the gradient.
        averaged: how many guesses' mean a step follows, one of those in ``results``.

    Returns:
        An `Advice`, with ``table``, ``sentences`` and ``epsilons``; ``print`` shows all.

    Raises:
        ValueError: Datasets of another kind, or of other steps or estimators; other wrong arguments.
    """
    check_kind("results", results, (xr.Dataset, xr.DataTree), PROGRESS_WORDS + ", or the tree of fga.diagnose")
    check_number("target_cosine", target_cosine, above=0, most=1)
    check_whole("averaged", averaged)
    progress = results if isinstance(results, xr.Dataset) else None
    tree = diagnosis if isinstance(results, xr.Dataset) else results
    if isinstance(results, xr.DataTree):
        if diagnosis is not None or cost is not None:
            raise ValueError("diagnosis and cost go beside the Dataset of fga.progress: give that as results")
    else:
        _check(results, "results", READ_OF_PROGRESS, PROGRESS_WORDS, (schema.STEP, schema.ESTIMATOR, schema.AVERAGED))
        counts = np.atleast_1d(results[schema.AVERAGED].values)
        for count in (1, int(averaged)):
            if count not in counts:
                raise ValueError(f"results lacks {count} of the numbers averaged; it has {listed(map(str, counts))}")
    nodes = _nodes(tree)
    if progress is not None and nodes is not None:
        _check_same(progress, nodes[0])
    priced = None if progress is None or cost is None else _priced(progress, cost, int(averaged))
    rows: list[dict[str, Any]] = []
    sentences: list[str] = []
    source = progress if progress is not None else nodes[0]  # type: ignore[index]
    steps, names = (np.atleast_1d(source[dim].values) for dim in (schema.STEP, schema.ESTIMATOR))
    reasons = _attribute(source, schema.NOT_MEASURED)
    if progress is None:
        sentences.append(
            "No step size, no steps for one of backpropagation and no guesses to balance can be advised without the "
            "curvature: fga.progress(snapshot, estimators) measures it."
        )
    else:
        said = _attribute(progress, schema.CAUTIONS).get("network", [])
        sentences += [f"Network: {sentence}." for sentence in said]
    for step in steps:
        for name in map(str, names):
            where = f"step {step}, {name}: " if len(steps) > 1 else f"{name}: "
            chosen = {schema.STEP: step, schema.ESTIMATOR: name}
            found: dict[str, Any] = {}
            said = []
            if name in reasons and _not_measured(source, chosen):
                said = [f"nothing is advised, since it was not measured: {reasons[name]}."]
            else:
                if progress is not None:
                    found, said = _of_progress(progress, priced, cost, nodes, chosen, int(averaged))
                if nodes is not None:
                    of_noise, noise_said = _of_noise(nodes, chosen, float(target_cosine))
                    found, said = found | of_noise, said + noise_said
            rows.append({schema.STEP: step, schema.ESTIMATOR: name} | _empty() | found)
            sentences += [where + sentence for sentence in said]
    if nodes is None:
        sentences.append(
            f"Guesses for a cosine of {target_cosine:g} and the layers that hold the noise take "
            "diagnosis=fga.diagnose(snapshot, estimators)."
        )
    epsilons: list[dict[str, Any]] = []
    if differences is not None:
        _check(
            differences,
            "differences",
            READ_OF_DIFFERENCES,
            "the Dataset that fga.difference_step returns",
            (schema.PRECISION, schema.SCHEME, schema.STEP_LENGTH),
        )
        epsilons, of_epsilon = of_differences(differences)
        sentences += of_epsilon
    elif any("finite_difference" in name.lower() for name in map(str, names)):
        sentences.append("Which ε suits a finite difference takes differences=fga.difference_step(snapshot).")
    return Advice(pd.DataFrame(rows), tuple(sentences), pd.DataFrame(epsilons))


def _of_progress(
    progress: xr.Dataset,
    priced: xr.Dataset | None,
    cost: xr.Dataset | None,
    nodes: tuple[xr.Dataset, xr.Dataset] | None,
    chosen: dict[str, Any],
    averaged: int,
) -> tuple[dict[str, Any], list[str]]:
    at_all = chosen | {schema.LAYER: schema.ALL_LAYERS}
    cell = _cell(priced if priced is not None else progress, at_all | {schema.AVERAGED: averaged})
    size, relative = step_size(cell, averaged)
    steps = steps_for_one(cell, averaged)
    unbiased = nodes is not None and unbiased_by_diagnosis(_cell(nodes[1], _at_weights(chosen)))
    balanced, excess = balanced_guesses(_cell(progress, at_all | {schema.AVERAGED: 1}), unbiased=unbiased)
    found = columns("step_size", size.number, size.advised) | columns("relative_step", relative, size.advised)
    found |= columns("steps_for_one", steps.number, steps.advised)
    found |= columns("balanced_guesses", balanced.number, balanced.advised)
    said = [*size.sentences, *steps.sentences, *balanced.sentences]
    if balanced.advised and cost is not None and cost[schema.AVERAGED].size > 1:
        said += best_priced_guesses(excess, _cell(cost, {schema.ESTIMATOR: chosen[schema.ESTIMATOR]}))
    return found, said


def _of_noise(
    nodes: tuple[xr.Dataset, xr.Dataset], chosen: dict[str, Any], target: float
) -> tuple[dict[str, Any], list[str]]:
    measured, predicted = (_cell(part, _at_weights(chosen)) for part in nodes)
    number = guesses_for_cosine(measured, predicted, target)
    layer, said = noisiest_layer(_cell(nodes[0], chosen | {schema.SPACE: "weight"}))
    found: dict[str, Any] = columns("guesses_for_cosine", number.number, number.advised)
    return found | {"noisiest_layer": layer}, [*number.sentences, *said]


def _at_weights(chosen: dict[str, Any]) -> dict[str, Any]:
    return chosen | {schema.SPACE: "weight", schema.LAYER: schema.ALL_LAYERS}


def _empty() -> dict[str, Any]:
    empty: dict[str, Any] = {}
    for name in BOUNDED_COLUMNS:
        empty |= columns(name, MISSING, advised=False)
    return empty | {"noisiest_layer": ""}


def _nodes(tree: xr.DataTree | None) -> tuple[xr.Dataset, xr.Dataset] | None:
    """/measured and /predicted, checked."""
    if tree is None:
        return None
    check_kind("diagnosis", tree, xr.DataTree, "the tree that fga.diagnose returns")
    measured, predicted = node(tree, "measured"), node(tree, "predicted")
    bounded = [name + part for name in BOUNDED_OF_DIAGNOSIS for part in ("", schema.LOW, schema.HIGH)]
    words = "part of the tree that fga.diagnose returns"
    _check(measured, "/measured", [*bounded, "gradient_norm"], words, ())
    _check(predicted, "/predicted", ["relative_bias", "directional_bias"], words, ())
    if "weight" not in measured[schema.SPACE].values or schema.ALL_LAYERS not in measured[schema.LAYER].values:
        raise ValueError(
            "the diagnosis must have the space 'weight' and the layer 'all': give what fga.diagnose returns"
        )
    return measured, predicted


def _check(dataset: object, name: str, variables: Sequence[str], words: str, dims: Sequence[str]) -> None:
    check_kind(name, dataset, xr.Dataset, words)
    assert isinstance(dataset, xr.Dataset)
    missing = [part for part in (*dims, *variables) if part not in dataset]
    if missing:
        raise ValueError(f"{name} must be {words}: it has no {missing[0]!r}")


def _check_same(progress: xr.Dataset, measured: xr.Dataset) -> None:
    for dim in (schema.STEP, schema.ESTIMATOR):
        missing = [str(value) for value in np.atleast_1d(progress[dim].values) if value not in measured[dim].values]
        if missing:
            raise ValueError(
                f"the diagnosis lacks the {dim} {listed(missing, 5)}: ask fga.diagnose for the same as fga.progress"
            )


def _priced(progress: xr.Dataset, cost: object, averaged: int) -> xr.Dataset:
    """Progress of steps along means of so many guesses, with progress for its price."""
    priced = progress_per_cost(
        progress.sel({schema.AVERAGED: [averaged]}) if schema.AVERAGED in progress.dims else progress,
        cost,  # type: ignore[arg-type]
    )
    _check(cost, "cost", READ_OF_COST, "the Dataset that fga.cost returns", ())
    return priced


def _cell(dataset: xr.Dataset, chosen: dict[str, Any]) -> xr.Dataset:
    """The values at some coordinates, for those that are dimensions."""
    return dataset.sel({dim: value for dim, value in chosen.items() if dim in dataset.dims})


def _not_measured(dataset: xr.Dataset, chosen: dict[str, Any]) -> bool:
    name = "slope_along" if "slope_along" in dataset else "efficiency"
    return bool(_cell(dataset, chosen)[name].isnull().all())


def _attribute(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(str(dataset.attrs.get(name, "{}")))
    return found
