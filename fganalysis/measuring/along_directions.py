"""Samples of guesses along random directions of the weights, of which only the numbers are kept.

Which estimators make such guesses is declared beside their formulas (`fganalysis.estimators.tangents_of_weights`). A
`Way` says how their numbers are drawn: by their law (by_law.py), or part by part (streamed.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xarray as xr
from tqdm import tqdm

from fganalysis import metrics
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label, settings
from fganalysis.estimators.tangents_of_weights import Tangents
from fganalysis.measuring.blocks import Seeds
from fganalysis.measuring.sampled_dataset import RawNumbers, attributes, sampled_dataset
from fganalysis.measuring.sound_guesses import finite_gradients
from fganalysis.results import schema
from fganalysis.statistics.intervals import Estimate

Bar = Callable[[Any, int], Any]  # Of steps and their number: the same steps, with a bar that shows how many are done.


class Draw(Protocol):
    """Draws the numbers of guesses. squared_gradient: exact ‖G‖², (space, layer), "all" last.

    Raises:
        ValueError: memory too small; guesses that are not finite.
    """

    def __call__(
        self,
        squared_gradient: np.ndarray,
        n_guesses: int,
        seeds: Seeds,
        *,
        memory: int,
        workers: int | None,
        bar: Bar,
    ) -> RawNumbers: ...


@dataclass(frozen=True)
class Way:
    """How the numbers of an estimator's guesses are drawn on a snapshot.

    Attributes:
        name: of the kind of draw, which its seeds take in. law: of a guess. draw: draws them. block_size: guesses for
            each generator. precision: of the numbers, relative. attributes: of the Dataset, besides those of every
            sample.
    """

    name: str
    law: Tangents
    draw: Draw
    block_size: int
    precision: float
    attributes: Mapping[str, object]


def dataset_along_directions(
    snapshot: Snapshot,
    estimator: Estimator,
    way: Way,
    n_guesses: int,
    seed: int,
    *,
    memory: int,
    workers: int | None,
    progress: bool,
) -> xr.Dataset:
    """The Dataset of `fganalysis.sample`, whose arguments these are, for guesses that are drawn in this way.

    Registered metrics take sums over guesses at the weights, so their variables are not there; the attribute
    ``metrics_left_out`` lists them.

    Raises:
        ValueError: a gradient or guesses that are not finite; more directions than weights; memory too small.
    """
    way.law.check_dimension([layer.weight.numel() for layer in snapshot.weights])
    raw = way.draw(
        finite_gradients(snapshot, at_activations=False),
        n_guesses,
        Seeds.of(seed, snapshot, estimator).named(way.name),
        memory=memory,
        workers=workers,
        bar=lambda steps, number: tqdm(steps, label(estimator), number, disable=not progress),
    )
    estimates = raw.estimates(way.precision)
    of_metrics, not_there = _at_activations(raw, estimates, snapshot)
    name = label(estimator)
    dataset = sampled_dataset(snapshot, name, raw, [estimates, *of_metrics])
    dataset.attrs = attributes(snapshot, name, settings(estimator), raw, seed, way.block_size, ())
    dataset.attrs |= {schema.METRICS_LEFT_OUT: json.dumps(not_there), **way.attributes}
    return schema.validate(schema.annotate(dataset))


def _at_activations(
    raw: RawNumbers, estimates: Mapping[str, Estimate], snapshot: Snapshot
) -> tuple[list[Mapping[str, Estimate]], list[str]]:
    """What registered metrics make of no guesses, without their variables at the weights; the names of those."""
    sizes = np.bincount(raw.group_of_guess).astype(float)
    nothing_kept = metrics.Groups(sizes, [], [], estimates)
    known: list[Mapping[str, Estimate]] = []
    unknown: list[str] = []
    for metric in metrics.registered():
        at_weights = [name for name, variable in metric.variables.items() if schema.SPACE in variable.dims]
        of_metric = metric.estimated(snapshot, nothing_kept)
        known.append({name: estimate for name, estimate in of_metric.items() if name not in at_weights})
        unknown += at_weights
    return known, unknown
