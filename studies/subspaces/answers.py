"""What the page of `studies.subspaces` says, computed from its collected Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import json

import xarray as xr

from studies.kit import pages
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
    return pages.render("subspaces", values(collected))


def values(collected: xr.Dataset) -> dict[str, object]:
    """Everything that the templates name."""
    settings = json.loads(collected.attrs["study_settings"])
    k = settings["k"]
    return {
        "settings": settings,
        "k": k,
        "n_seeds": collected.sizes["seed"],
        "run": json.loads(collected.attrs["whole_run"]) if "whole_run" in collected.attrs else None,
        "common_step": float(collected["training_step"].sel(moment="common").max()),
        "last_hidden": hidden_layers(collected)[-1],
        "initial_loss": over_seeds(collected["initial_loss"].sel(trained_by="backpropagation").mean("width")),
        "trainings": [NAMES[method] for method in METHODS[1:]],
        "learned": _learned(collected),
        "overlaps": overlaps(collected, k),
        "best_k": best_k(collected, k),
        "widths": widths_compared(collected, k),
        "progress": descent(collected, k),
        "over_time": over_time(collected, k),
    }


def _learned(collected: xr.Dataset) -> list[list[str]]:
    """Loss and accuracy after the last step, a row a width."""
    rows = []
    for width in all_widths(collected):
        last = collected.sel(width=width, moment="last")
        states = [last.sel(trained_by=method) for method in METHODS[1:]]
        ends = [f"{over_seeds(state['loss'])} ({over_seeds(state['train_accuracy'])})" for state in states]
        rows.append([str(width), f"{float(last['training_step'].max()):.0f}", *ends])
    return rows
