"""What the page of `studies.guess_target` says, computed from its DataTree; the sentences are in page.md.j2."""

from __future__ import annotations

import re

import xarray as xr

from studies.guess_target.cells import GUESSES, HEADS, HIDDEN, KINDS, NOISE, PROJECTIONS, TARGETS
from studies.kit import pages
from studies.kit.markdown import listed
from studies.kit.seeds import Interval, over_seeds

NAMES = {"gradient": "the gradient", "random": "noise", "live": "noise on live units"} | {
    f"{kind} {state}": f"{name} head, {word}"
    for kind, name in zip(KINDS, ("linear", "MLP", "CNN"), strict=True)
    for state, word in (("head", "trained"), ("frozen", "frozen"))
}
SIDES = ("better", "worse", "neither")
SHOWN = {"cosine": "Cosine", "relative_bias": "Relative bias", "efficiency": "Efficiency"}


def page(tree: xr.DataTree) -> str:
    """The page docs/results/guess_target.md."""
    return pages.render("guess_target", values(tree))


def values(tree: xr.DataTree) -> dict[str, object]:
    """Everything that the template names."""
    measured, trained = tree["measured"].to_dataset(), tree["trained"].to_dataset()
    weight = measured.sel(space="weight", layer=HIDDEN)
    noise = weight["cosine"].sel(target="global", guess="random").isel(step=0)
    return {
        "settings": measured.attrs,
        "training": trained.attrs,
        "n_seeds": measured.sizes["seed"],
        "n_training_seeds": trained.sizes["seed"],
        "names": NAMES,
        "compared": [NAMES[guess] for guess in (*HEADS, NOISE[-1])],
        "steps": [int(step) for step in weight["step"].values],
        "targets": list(TARGETS),
        "projections": list(PROJECTIONS),
        "in_short": _in_short(weight),
        "lead": _lead(weight),
        "claim": _claim(weight),
        "against": {noise: _verdict(weight, noise) for noise in ("random", "live")},
        "noise_at_start": [over_seeds(noise.sel(projection=projection).values) for projection in PROJECTIONS],
        "cells": [(title, _by_step(weight, name)) for name, title in SHOWN.items()],
        "at_activations": _at_activations(measured),
        "isotropic": _isotropic(measured),
        "accuracies": _accuracies(trained),
        "alignment": _alignment_against_training(weight, trained),
    }


def _in_short(weight: xr.Dataset) -> list[tuple[str, int, list[tuple[str, list[str]]]]]:
    """The cosines of trained and frozen heads and of noise, at the first and at the last step."""
    lines = []
    for index, when in ((0, "first"), (-1, "last")):
        cosine = weight["cosine"].sel(target="global").isel(step=index)
        cosines = [
            (NAMES[guess], [shown(over_seeds(cosine.sel(guess=guess, projection=p).values)) for p in PROJECTIONS])
            for guess in ("mlp head", "linear head", "mlp frozen", "random")
        ]
        lines.append((when, int(weight["step"][index]), cosines))
    return lines


def _lead(weight: xr.Dataset) -> list[Interval]:
    """The cosine of the trained MLP head minus that of noise, in activation space, at the first and the last step."""
    cosine = weight["cosine"].sel(target="global", projection="activation").isel(step=[0, -1])
    differences = cosine.sel(guess="mlp head") - cosine.sel(guess="random")
    return [over_seeds(differences.isel(step=index).values) for index in (0, 1)]


def _claim(weight: xr.Dataset) -> list[list[str]]:
    """The cosine of noise, and by how much each guess exceeds it: a row for each step and space of the projection."""
    cosine = weight["cosine"].sel(target="global")
    rows = []
    for step in cosine["step"].values:
        for projection in PROJECTIONS:
            cosines = cosine.sel(step=step, projection=projection)
            noise = cosines.sel(guess="random").values
            differences = [over_seeds(cosines.sel(guess=guess).values - noise) for guess in (*HEADS, NOISE[-1])]
            rows.append([str(step), projection, str(over_seeds(noise)), *map(shown, differences)])
    return rows


def _verdict(weight: xr.Dataset, against: str) -> list[list[str]]:
    """The heads that are significantly above the noise, below it, or neither: a row for each step and space."""
    rows = []
    for step in weight["step"].values:
        for projection in PROJECTIONS:
            cosines = weight["cosine"].sel(step=step, projection=projection, target="global")
            noise = cosines.sel(guess=against).values
            sides: dict[str, list[str]] = {side: [] for side in SIDES}
            for guess in HEADS:
                difference = over_seeds(cosines.sel(guess=guess).values - noise)
                sides[_side(difference)].append(NAMES[guess].replace(" head,", ""))
            lists = [listed(names) if names else "none" for names in sides.values()]
            rows.append([str(step), projection, *lists])
    return rows


def shown(interval: Interval) -> str:
    """The interval, without digits that single precision does not have, and without a minus before a zero."""
    if interval.half < 1e-6 * abs(interval.mean):
        return f"{interval.mean:.3g}"
    return re.sub(r"^-(0\.0+ )", r"\1", str(interval))


def _side(difference: Interval) -> str:
    """On which side of zero the whole interval lies, if it does not include zero."""
    if difference.low > 0:
        return SIDES[0]
    return SIDES[1] if difference.high < 0 else SIDES[2]


def _by_step(weight: xr.Dataset, name: str) -> list[tuple[int, Interval, list[list[str]]]]:
    """At every step: the training accuracy and the cells of one quantity."""
    return [
        (int(step), over_seeds(weight["accuracy"].sel(step=step).values), _cells(weight[name].sel(step=step)))
        for step in weight["step"].values
    ]


def _cells(values: xr.DataArray) -> list[list[str]]:
    """A row for each guess, a column for each target and space of the projection."""
    columns = [(target, projection) for target in TARGETS for projection in PROJECTIONS]
    rows = []
    for guess in GUESSES:
        intervals = [over_seeds(values.sel(guess=guess, target=t, projection=p).values) for t, p in columns]
        rows.append([NAMES[guess], *map(shown, intervals)])
    return rows


def _at_activations(measured: xr.Dataset) -> list[list[str]]:
    """Cosines in activation space: a row for each guess, a column for each target and step."""
    cosine = measured["cosine"].sel(space="activation", layer=HIDDEN, projection="activation")
    rows = []
    for guess in GUESSES:
        intervals = [
            over_seeds(cosine.sel(guess=guess, target=target, step=step).values)
            for target in TARGETS
            for step in cosine["step"].values
        ]
        rows.append([NAMES[guess], *map(shown, intervals)])
    return rows


def _isotropic(measured: xr.Dataset) -> list[list[str]]:
    """The cosine of random weight guesses, predicted and measured: a row for each tap, a column for each step."""
    cosine = measured["cosine"].sel(guess="random", target="global", projection="weight", space="weight")
    rows = []
    for layer in cosine["layer"].values[:-1]:
        predicted = f"{float(measured['isotropic_cosine'].sel(layer=layer)):.5f}"
        cells = [over_seeds(cosine.sel(layer=layer, step=step).values) for step in cosine["step"].values]
        within = listed("yes" if cell.low <= float(predicted) <= cell.high else "no" for cell in cells)
        rows.append([str(layer), predicted, *map(shown, cells), within])
    return rows


def _accuracies(trained: xr.Dataset) -> list[list[str]]:
    """Training and test accuracy after the last step: a row for each way of training."""
    last = trained.isel(step=-1)
    rows = []
    for way in last["way"].values:
        parts = [over_seeds(last[f"{part}_accuracy"].sel(way=way).values) for part in ("train", "test")]
        rows.append([str(way), *map(str, parts)])
    return rows


def _alignment_against_training(weight: xr.Dataset, trained: xr.Dataset) -> dict[str, Interval]:
    """Global minus local target of the trained linear head in activation space: cosine, and accuracy after training."""
    cosine = weight["cosine"].isel(step=-1).sel(guess="linear head", projection="activation")
    accuracy = trained["train_accuracy"].isel(step=-1)
    cosine_gain = over_seeds(cosine.sel(target="global").values - cosine.sel(target="local").values)
    accuracy_gain = over_seeds(
        accuracy.sel(way="global, linear head, activation").values - accuracy.sel(way="local, linear head").values
    )
    return {"cosine": cosine_gain, "accuracy": accuracy_gain}
