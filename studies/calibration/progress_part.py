"""The part of `studies.calibration` on steps, costs, own draws and differences: its cells, and what they make."""

from __future__ import annotations

import re
from typing import Protocol

import xarray as xr

from fganalysis.results import schema
from fganalysis.results.cells import Results
from fganalysis.results.identity import Cell
from studies.calibration.advice import COUNTS
from studies.calibration.costs import CLOCKS, counted_costs
from studies.calibration.counting import WORDS
from studies.calibration.differences import CASES as DIFFERENCES
from studies.calibration.differences import counted_differences
from studies.calibration.kinks import KINKED, SMOOTH, ratios
from studies.calibration.own_draws import LAWS, TRUTHS, counted_draws
from studies.calibration.steps import counted_steps
from studies.calibration.traces import CASES as TRACES
from studies.calibration.traces import counted_traces
from studies.kit import command_line

ESTIMATORS_WITH_STEPS = (
    *("activity", "upstream", "weight", "mean of 4 tangents", "minibatch, 2 of 4", "activity, Laplace"),
)
ROUNDS = 21  # Of `fga.cost` by default; counted beside the numbers of guesses.


class ProgressSettings(Protocol):
    """The settings of `studies.calibration` that this part reads."""

    @property
    def guesses(self) -> tuple[int, ...]: ...
    @property
    def progress_repeats(self) -> int: ...
    @property
    def progress_estimators(self) -> tuple[str, ...]: ...
    @property
    def kink_networks(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def device(self) -> command_line.Device: ...


def cells(settings: ProgressSettings) -> list[Cell]:
    """Those that take least time first."""
    every: dict[str, object] = {"seed": settings.seed, "device": settings.device}
    repeated = every | {"repeats": settings.progress_repeats}
    found = [
        Cell(_name("costs", rounds, name), counted_costs, repeated | {"name": name, "rounds": rounds})
        for name in CLOCKS
        for rounds in (ROUNDS, *settings.guesses)
    ]
    for activation in (*SMOOTH, *KINKED):
        chosen = every | {"activation": activation, "networks": settings.kink_networks}
        found.append(Cell(f"cells/kinks_{_slug(activation)}", ratios, chosen))
    for n_guesses in sorted(settings.guesses):
        counted = repeated | {"n_guesses": n_guesses}
        for name in settings.progress_estimators:
            found.append(Cell(_name("steps", n_guesses, name), counted_steps, counted | {"name": name}))
        for name, case in TRACES.items():
            if n_guesses in case.guesses:
                found.append(Cell(_name("traces", n_guesses, name), counted_traces, counted | {"name": name}))
        for name in DIFFERENCES:
            found.append(Cell(_name("differences", n_guesses, name), counted_differences, counted | {"name": name}))
        for law in LAWS:
            for truth in TRUTHS:
                name, chosen = _of_draws(law, truth), {"law": law, "truth": truth}
                found.append(Cell(_name("draws", n_guesses, name), counted_draws, counted | chosen))
    return found


def collected(settings: ProgressSettings, results: Results) -> xr.DataTree:
    """/coverage/N over (estimator, quantity, space, layer), /advice over (guesses, estimator, advice), and /kinks."""
    nodes: dict[str, xr.Dataset] = {}
    for n_guesses in settings.guesses:
        parts = {name: results.dataset(_name("steps", n_guesses, name)) for name in settings.progress_estimators}
        parts |= {
            name: results.dataset(_name("traces", n_guesses, name))
            for name, case in TRACES.items()
            if n_guesses in case.guesses
        }
        parts |= {name: results.dataset(_name("differences", n_guesses, name)) for name in DIFFERENCES}
        parts |= {name: results.dataset(_name("costs", n_guesses, name)) for name in CLOCKS}
        for law in LAWS:
            for truth in TRUTHS:
                name = _of_draws(law, truth)
                parts[name] = results.dataset(_name("draws", n_guesses, name))
        nodes[f"coverage/{n_guesses}"] = _joined(parts, settings.progress_repeats, n_guesses)
    default = {name: results.dataset(_name("costs", ROUNDS, name)) for name in CLOCKS}
    nodes["rounds"] = _joined(default, settings.progress_repeats, ROUNDS)
    nodes["advice"] = _advice(settings, results)
    nodes["kinks"] = _kinks(results)
    return xr.DataTree.from_dict(nodes)


def _joined(parts: dict[str, xr.Dataset], repeats: int, n_guesses: int) -> xr.Dataset:
    """Networks differ in their layers: here they are numbered, the whole is 0."""
    rows = []
    for name, part in parts.items():
        counts = part[list(WORDS)]
        places = [*range(1, counts.sizes[schema.LAYER]), 0]
        rows.append(counts.assign_coords({schema.LAYER: places, schema.ESTIMATOR: name}))
    joined = xr.concat(rows, dim=schema.ESTIMATOR, join="outer", data_vars="all", coords="different", compat="equals")
    joined.attrs = {"repeats": repeats, "n_guesses": n_guesses}
    return described(joined, WORDS, {"truth": "that of the quantity"})


def _advice(settings: ProgressSettings, results: Results) -> xr.Dataset:
    rows = []
    for n_guesses in settings.guesses:
        of_number = [
            results.dataset(_name("steps", n_guesses, name))[list(COUNTS)].assign_coords(estimator=name)
            for name in settings.progress_estimators
        ]
        joined = xr.concat(of_number, dim=schema.ESTIMATOR, data_vars="all")
        rows.append(joined.assign_coords(guesses=n_guesses))
    found = xr.concat(rows, dim="guesses", data_vars="all")
    found.attrs = {"repeats": settings.progress_repeats}
    return described(found, COUNTS, {"true_number": "that of the number"})


def _kinks(results: Results) -> xr.Dataset:
    names = [*SMOOTH, *KINKED]
    rows = [results.dataset(f"cells/kinks_{_slug(name)}").assign_coords(activation=name) for name in names]
    found = xr.concat(rows, dim="activation", data_vars="all")
    words = {
        "ratio": "truncation error over that of the derivatives, at the best epsilon by derivatives",
        "error_by_derivatives": "error of the slope at the best epsilon by derivatives, over the gradient's norm",
        "error_by_kinks": "error of the slope at the best epsilon by kinks, over the gradient's norm",
    }
    return described(found, words, {})


def described(dataset: xr.Dataset, words: dict[str, str], units: dict[str, str]) -> xr.Dataset:
    """The same with units and a long name of each variable."""
    for name, text in words.items():
        dataset[name].attrs = {"units": units.get(name, "1"), "long_name": text}
    return dataset


def _of_draws(law: str, truth: str) -> str:
    return f"{law}; truth: {truth}"


def _name(kind: str, number: int, name: str) -> str:
    return f"cells/{kind}_{number}_{_slug(name)}"


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)
