"""diagnose(): measurements of several estimators and the predictions of theory for them, under the same names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from fganalysis.arguments import check_flag, check_kind, check_whole, described, listed
from fganalysis.capturing.coordinates import squared_gradients
from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label, resolve, settings, stable_name
from fganalysis.estimators.guesses import Estimates
from fganalysis.measuring.joining import along, as_attribute, in_a_sentence
from fganalysis.measuring.sample import check_settings, sample
from fganalysis.measuring.snapshot_subspaces import subspace_work, subspaces
from fganalysis.predictions import predict
from fganalysis.results import schema

# A /subspace of this size takes about a second on one core. To tune this number and `EACH` (in snapshot_subspaces.py)
# again, time `spectra` on networks of growing width and compare with `subspace_work`.
CHEAP = 10**10  # By default /subspace is computed only if it takes at most this many multiplications.


def diagnose(
    snapshot: Snapshot | Sequence[Snapshot],
    estimators: str | Estimator | Sequence[str | Estimator],
    n_guesses: int = 4096,
    seed: int = 0,
    *,
    memory: int = 2**30,
    subspace: bool | None = None,
    progress: bool = False,
    by_law: bool = False,
    keep_sums: str | Path | None = None,
) -> xr.DataTree:
    """Measures every estimator, and predicts the same variables from theory.

    Finished results are kept. If an estimator or a prediction fails, its numbers are NaN; if /subspace fails, it is
    missing. The attribute ``not_measured`` gives the reasons, as a JSON object from label to sentence, and `summary`
    shows them.

    Args:
        snapshot: one snapshot, or several taken at different steps of one training.
        estimators: a key or an instance, or a list of these. n_guesses, seed, memory, progress, by_law: as in
            `sample`. An estimator whose guesses cannot be drawn by their law has no numbers, and the reason.
        keep_sums: a folder for the sums of each estimator at each step, see `sample`.
        subspace: whether to compute /subspace. By default it is computed if `subspace_work` is at most `CHEAP`.

    Returns:
        DataTree with /measured and /predicted, which have the same variables over (step, estimator, space, layer), and
        /subspace (see `subspaces`). If estimators have different numbers of groups, the missing groups have NaN in
        ``gram`` and 0 in ``group_size``. The attribute ``not_looked_at`` is that of `sample`.

    Raises:
        ValueError: no estimator, an unknown estimator, or two with the same label; no snapshot, two of the same step,
            or two of different networks, batch sizes or data types; other wrong arguments. If no estimator could be
            measured, the error of the first.
    """
    chosen, snapshots = estimators_by_label(estimators), snapshots_of_one_training(snapshot)
    check_settings(n_guesses, seed, memory, progress, keep_sums=keep_sums)
    if subspace is not None:
        check_flag("subspace", subspace)
    check_flag("by_law", by_law)

    def measure(snapshot: Snapshot, estimator: Estimator) -> xr.Dataset:
        kept = None if keep_sums is None else Path(keep_sums) / name_of_sums(snapshot, estimator)
        return sample(
            snapshot, estimator, n_guesses, seed, memory=memory, progress=progress, by_law=by_law, keep_sums=kept
        )

    return diagnosis(snapshots, chosen, measure, subspace)


def diagnosis(
    snapshots: Sequence[Snapshot],
    chosen: Mapping[str, Estimator],
    measure: Callable[[Snapshot, Estimator], xr.Dataset],
    subspace: bool | None,
) -> xr.DataTree:
    """The result of `diagnose` for estimators by label, with what ``measure`` returns in place of that of `sample`."""
    with full_precision(snapshots[0]):
        nodes = {
            "measured": _measured(snapshots, chosen, measure),
            "predicted": _predicted(snapshots, chosen),
        }
        spaces, reasons = _subspaces(snapshots, subspace)
    if spaces is not None:
        nodes["subspace"] = spaces
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs |= reasons
    return tree


def name_of_sums(snapshot: Snapshot, estimator: str | Estimator) -> str:
    """The file of an estimator's sums, named by the step and its label, and by a hash as labels may be equal in it."""
    words = re.sub("[^a-z0-9.=]+", "_", label(estimator).lower())[:60]
    digest = hashlib.sha256(stable_name(estimator).encode()).hexdigest()[:8]
    return f"step_{snapshot.step:06d}_{words}_{digest}.sums"


def estimators_by_label(given: Any) -> dict[str, Estimator]:
    """The estimators by label. Refuses two with the same label or the same stable name."""
    estimators = [resolve(item) for item in (given if isinstance(given, list | tuple) else [given])]
    names = [label(estimator) for estimator in estimators]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"estimators must be different ones and at least one, got {names}")
    if len({stable_name(estimator) for estimator in estimators}) < len(names):
        raise ValueError(
            f"two of {listed(names, 10)} have the same stable_name and would share noise: give each another"
        )
    return dict(zip(names, estimators, strict=True))


def snapshots_of_one_training(given: Any) -> list[Snapshot]:
    snapshots = list(given) if isinstance(given, list | tuple) else [given]
    for snapshot in snapshots:
        check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns, or a list of these")
        check_whole("the step of a snapshot", snapshot.step, 0)
    steps = [snapshot.step for snapshot in snapshots]
    if not steps or len(set(steps)) < len(steps):
        raise ValueError(f"snapshots must be of different steps and at least one, got the steps {steps}")
    first, *others = snapshots
    for other in others:
        for (name, actual), (_, expected) in zip(_what_is_compared(other), _what_is_compared(first), strict=True):
            if actual != expected:
                raise ValueError(
                    f"snapshots must be of one training: their {name} differ, {described(expected)} at step "
                    f"{first.step} and {described(actual)} at step {other.step}"
                )
    return snapshots


def _what_is_compared(snapshot: Snapshot) -> list[tuple[str, object]]:
    """What must be equal in snapshots of one training: pairs of a description and a value."""
    return [
        ("layers", list(snapshot.layers)),
        ("weights' shapes", [str(tuple(layer.weight.shape)) for layer in snapshot.weights]),
        ("modules", [type(module).__name__ for module in snapshot.network.modules()]),
        ("numbers of examples", snapshot.n_examples),
        ("data types", str(snapshot.dtype).removeprefix("torch.")),
        ("devices", str(snapshot.device)),
    ]


def _attempted(
    snapshots: Sequence[Snapshot],
    chosen: Mapping[str, Estimator],
    make: Callable[[Snapshot, Estimator], xr.Dataset],
) -> tuple[dict[tuple[int, str], xr.Dataset], dict[tuple[int, str], Exception]]:
    """The results for each snapshot and estimator, by step and label, and the errors of those that failed."""
    made: dict[tuple[int, str], xr.Dataset] = {}
    failed: dict[tuple[int, str], Exception] = {}
    for snapshot in snapshots:
        for name, estimator in chosen.items():
            try:
                made[snapshot.step, name] = make(snapshot, estimator)
            except Warning:
                raise
            except Exception as error:  # Users' code may raise anything: the finished results of others must stay.
                failed[snapshot.step, name] = error
    return made, failed


def _measured(
    snapshots: Sequence[Snapshot],
    chosen: Mapping[str, Estimator],
    measure: Callable[[Snapshot, Estimator], xr.Dataset],
) -> xr.Dataset:
    made, failed = _attempted(snapshots, chosen, measure)
    if not made:
        (_, name), error = next(iter(failed.items()))
        raise ValueError(f"no estimator could be measured; {name}: {in_a_sentence(error)}") from error
    pattern = xr.full_like(next(iter(made.values())), np.nan, dtype=np.float64)
    pattern["group_size"] = xr.zeros_like(pattern["group_size"], dtype=np.int64)

    def unknown(snapshot: Snapshot, name: str) -> xr.Dataset:
        coordinates = {schema.STEP: snapshot.step, schema.ESTIMATOR: name}
        dataset = pattern.assign_coords(coordinates).copy(deep=True)
        dataset["gradient_norm"].values[:] = np.sqrt(squared_gradients(snapshot))
        return dataset.assign_attrs(estimator=name, settings=json.dumps(settings(chosen[name])))

    return _stacked(snapshots, chosen, made, failed, unknown)


def _predicted(snapshots: Sequence[Snapshot], chosen: Mapping[str, Estimator]) -> xr.Dataset:
    made, failed = _attempted(snapshots, chosen, predict)

    def unknown(snapshot: Snapshot, name: str) -> xr.Dataset:
        return predict(snapshot, _of_no_known_law).assign_coords({schema.ESTIMATOR: name})

    return _stacked(snapshots, chosen, made, failed, unknown)


def _of_no_known_law(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
    """Replaces an estimator whose prediction failed: it has no closed form, so all predictions are NaN."""
    raise NotImplementedError


def _subspaces(snapshots: Sequence[Snapshot], asked: bool | None) -> tuple[xr.Dataset | None, dict[str, str]]:
    """/subspace, or None with the attribute that says why it is missing; without a reason if ``asked`` is False."""
    work = sum(map(subspace_work, snapshots))
    if asked is None and work > CHEAP:
        reason = f"about {work:.0e} multiplications, above {CHEAP:.0e}: ask for it with subspace=True"
    elif asked is False:
        return None, {}
    else:
        try:
            return along(schema.STEP, [subspaces(snapshot) for snapshot in snapshots]), {}
        except Warning:
            raise
        except Exception as error:  # The guesses of all estimators are finished and must not be lost.
            reason = in_a_sentence(error)
    return None, as_attribute([{"/subspace": reason}])


def _stacked(
    snapshots: Sequence[Snapshot],
    chosen: Mapping[str, Estimator],
    made: Mapping[tuple[int, str], xr.Dataset],
    failed: Mapping[tuple[int, str], Exception],
    unknown: Callable[[Snapshot, str], xr.Dataset],
) -> xr.Dataset:
    """All results over step and estimator. ``unknown`` (snapshot, label) gives the result of a failed estimator."""
    steps = []
    for snapshot in snapshots:
        row = [
            made[snapshot.step, name] if (snapshot.step, name) in made else unknown(snapshot, name) for name in chosen
        ]
        reasons = {name: in_a_sentence(error) for (step, name), error in failed.items() if step == snapshot.step}
        looked_at_by_all = not any(json.loads(str(part.attrs.get(schema.NOT_LOOKED_AT, "[]"))) for part in row)
        unseen = {schema.NOT_LOOKED_AT: json.dumps(() if looked_at_by_all else snapshot.untapped_parameters)}
        step = along(schema.ESTIMATOR, row).assign_attrs(unseen | as_attribute([reasons]))
        steps.append(step.expand_dims(schema.STEP))
    return along(schema.STEP, steps)
