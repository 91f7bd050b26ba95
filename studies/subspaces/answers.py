"""The page of `studies.subspaces`, docs/results/subspaces.md, with every number read from the collected Dataset."""

from __future__ import annotations

import json
from typing import Any

import xarray as xr

from studies.kit.markdown import table
from studies.kit.seeds import over_seeds
from studies.subspaces.best_k import best_k
from studies.subspaces.cells import METHODS
from studies.subspaces.figures import NAMES
from studies.subspaces.over_time import over_time
from studies.subspaces.overlaps import overlaps
from studies.subspaces.picks import all_widths, hidden_layers
from studies.subspaces.progress import descent
from studies.subspaces.widths import widths_compared


def answers(collected: xr.Dataset) -> str:
    """The page docs/results/subspaces.md."""
    settings = json.loads(collected.attrs["study_settings"])
    parts = [answer(collected, settings["k"]) for answer in (overlaps, best_k, widths_compared, descent)]
    lines = [*_head(collected, settings), "## In short", ""]
    lines += [f"- ({letter}) {short}" for letter, (short, _) in zip("abcd", parts, strict=True)]
    for _, section in parts:
        lines += ["", *section]
    return "\n".join([*lines, "", *over_time(collected, settings["k"])]) + "\n"


def _head(collected: xr.Dataset, settings: dict[str, Any]) -> list[str]:
    k, widths, hidden = settings["k"], all_widths(collected), hidden_layers(collected)
    rows = []
    for width in widths:
        own = collected.sel(width=width, moment="last")
        steps = f"{float(own['training_step'].max()):.0f}"
        rows.append([str(width), steps, *(_learned(own.sel(trained_by=method)) for method in METHODS[1:])])
    start = over_seeds(collected["initial_loss"].sel(trained_by="backpropagation").mean("width"))
    common = float(collected["training_step"].sel(moment="common").max())
    return [
        "# The subspace the gradient lives in",
        "",
        "Written by `python -m studies.subspaces` from its Dataset [subspaces.nc](subspaces.nc): do not edit. Every "
        f"number is a mean over {collected.sizes['seed']} seeds with its 95 % interval. {_time(collected)}",
        "",
        f"MLPs on {settings['dataset']} with three hidden ReLU layers and no biases, trained by AdamW (learning rate "
        f"{settings['learning_rate']:g}, batches of {settings['training_batch']}, {common:.0f} steps at every width, "
        f"the common step, more at some), looked at on {settings['batch']} examples. W̃⊥ is the orthogonal upstream "
        f"guess with k = {k}, W̃ᵀ the plain one. Noise is Gaussian and independent for every example, each example has "
        "its own slope, and one joint pass perturbs all layers.",
        "",
        "o² is the share of the squared activation gradient in the k leading right singular vectors of its own "
        f"example's upstream Jacobian. Layers bear their modules' names. Layer {hidden[-1]}, the last hidden one, is "
        "left out of overlaps: its Jacobian has as many directions as there are classes, whatever was trained. "
        "Efficiency is the fraction of the exact step's progress that one guess makes at its best step size.",
        "",
        f"Loss (accuracy) on the training set after the last step; before the first the loss is {start}:",
        "",
        table(["width", "steps", *(NAMES[m] for m in METHODS[1:])], rows),
        "",
    ]


def _time(collected: xr.Dataset) -> str:
    if "whole_run" not in collected.attrs:
        return "Its run was resumed, so how long the whole takes was not measured."
    run = json.loads(collected.attrs["whole_run"])
    return f"It took {run['minutes']:.1f} minutes with {run['workers']} processes on {run['cores']} cores."


def _learned(own: xr.Dataset) -> str:
    return f"{over_seeds(own['loss'])} ({over_seeds(own['train_accuracy'])})"
