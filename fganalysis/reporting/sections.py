"""The figures of a part, a section a question, and a sentence for every section that a result has nothing for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from fganalysis.arguments import listed
from fganalysis.reporting import names
from fganalysis.reporting.deviations import deviations
from fganalysis.reporting.lines import over
from fganalysis.reporting.parts import Part, parsed
from fganalysis.reporting.spectra import chosen, energy, overlap
from fganalysis.reporting.svg import svg
from fganalysis.results import plotting, schema
from fganalysis.results.tables import KEYS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_STEPS = 3  # Panels in a row.
BY_LAYER = ("cosine", "efficiency")
# What a monitor measures of the training itself, over its steps.
OF_TRAINING = ("loss", "grad_cosine", "grad_relative_error", "gradient_noise_scale")
INTERVAL = ("", schema.LOW, schema.HIGH)
SPACES_IN_ORDER = ("weight", schema.PARAMETER, "activation")  # In the order in which they are shown.


@dataclass
class Section:
    """A heading, figures with their captions, and tables."""

    title: str
    figures: list[tuple[str, str]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)


@dataclass
class Drawer:
    """Draws the figures of one part; prefix: begins the names of all of them in the page."""

    prefix: str
    n_figures: int = 0

    def add(self, section: Section, figure: Figure, caption: str) -> None:
        self.n_figures += 1
        section.figures.append((svg(figure, f"{self.prefix}-{self.n_figures}", caption), caption))


def sections(part: Part, scores: xr.Dataset, prefix: str) -> tuple[list[Section], list[str]]:
    """The sections that the part has, and a sentence for each that it has not."""
    why_not = _why_no_figures(part)
    if why_not:
        return [], [f"Figures: {why_not}."]
    part, scores, drawer = names.for_figures(part), names.renamed(scores), Drawer(prefix)
    found: list[Section] = []
    missing: list[str] = []
    for make in SECTIONS:
        section, sentence = make(part, scores, drawer)
        if section.figures:
            found.append(section)
        if sentence:
            missing.append(sentence)
    return found, missing


def _bias_against_variance(part: Part, _: xr.Dataset, drawer: Drawer) -> tuple[Section, str]:
    section = Section("Bias against variance")
    for space, measured, predicted in _by_space(part, ("relative_bias", "variance"), "gradient_norm"):
        relative = measured["variance"] / measured["gradient_norm"] ** 2
        if not bool(((relative > plotting.LEAST_VARIANCE_SHOWN) & measured["relative_bias"].notnull()).any()):
            continue
        tree = _tree(measured, predicted)
        every = [str(name) for name in measured[schema.LAYER].values]
        together = schema.ALL_LAYERS if schema.ALL_LAYERS in every else every[-1]
        crosses = " Crosses are predictions." if predicted.data_vars else ""
        drawer.add(
            section,
            plotting.bias_variance(tree, space, [together]),
            f"Relative bias of a guess (up) against its total variance over the squared gradient norm (right), "
            f"in space {space}, {_layer(together)}. Bars are 95 % intervals.{crosses}",
        )
        if len(every) > 2:
            last = {name: node.to_dataset().isel({schema.STEP: [-1]}) for name, node in tree.children.items()}
            single = chosen([name for name in every if name != together])
            drawer.add(
                section,
                plotting.bias_variance(xr.DataTree.from_dict(last), space, single),
                f"The same in {_some(single, len(every) - 1, 'layers')}, at the last step.",
            )
    return section, "" if section.figures else (
        "Bias against variance: the result has no guesses with both; `fga.diagnose` and `fga.sample` measure them."
    )


def _cosine_and_efficiency(part: Part, _: xr.Dataset, drawer: Drawer) -> tuple[Section, str]:
    section = Section("Cosine and efficiency")
    sentence = ""
    for space, measured, predicted in _by_space(part, BY_LAYER, all_steps=True):
        steps, layers = measured[schema.STEP].values, [str(name) for name in measured[schema.LAYER].values]
        panels = {f"step {step}": {schema.STEP: step} for step in _some_steps(measured)[schema.STEP].values}
        words = (
            "Mean cosine of a guess with the gradient, and efficiency: the part of the exact step's progress that a "
            "guess makes at its best step size."
        )
        if len(layers) > 1 or len(steps) == 1:
            drawer.add(
                section,
                over(measured, predicted, BY_LAYER, schema.LAYER, f"layer, {space} space", panels=panels),
                f"{words} By layer, in space {space}.",
            )
        if len(steps) > 1:
            together = {schema.LAYER: schema.ALL_LAYERS if schema.ALL_LAYERS in layers else layers[-1]}
            of_together = predicted.sel(together) if predicted.data_vars else predicted
            drawer.add(
                section,
                over(measured.sel(together), of_together, BY_LAYER, schema.STEP, f"step of training, {space} space"),
                f"{words} Over the steps of training, in space {space}, {_layer(together[schema.LAYER])}.",
            )
        else:
            sentence = "Over steps: the result is of one step of training."
    return section, sentence if section.figures else (
        "Cosine and efficiency: not in this result; `fga.diagnose` and `fga.sample` measure them."
    )


def _training(part: Part, _: xr.Dataset, drawer: Drawer) -> tuple[Section, str]:
    section = Section("The training")
    present = [name for name in OF_TRAINING if name in part.measured and _is_known(part.measured[name])]
    if OF_TRAINING[0] not in present or part.measured.sizes.get(schema.STEP, 1) < 2:
        return section, ""
    measured = part.measured[[name + end for name in present for end in INTERVAL if name + end in part.measured]]
    if schema.LAYER in measured.dims:
        measured = measured.sel({schema.LAYER: schema.ALL_LAYERS})
    measured = measured.drop_vars(schema.ESTIMATOR, errors="ignore").expand_dims({schema.ESTIMATOR: ["the training"]})
    drawer.add(
        section,
        over(measured, xr.Dataset(), present, schema.STEP, "step of training"),
        "The training itself: the loss of the batch, and what else was measured of its gradients.",
    )
    return section, ""


def _subspace(part: Part, _: xr.Dataset, drawer: Drawer) -> tuple[Section, str]:
    section = Section("The subspace of the gradient")
    spaces, where = part.subspace, ""
    if schema.STEP in spaces.dims:
        where = f" At step {spaces[schema.STEP].values[-1]}."
        spaces = spaces.isel({schema.STEP: -1})
    if "energy" not in spaces or not _is_known(spaces["energy"]):
        return section, "Energy curves: not in this result; `fga.diagnose(…, subspace=True)` measures them."
    drawer.add(
        section,
        energy(spaces),
        "Energy curves: the share of the squared singular values in so many leading modes. They are exact for this "
        f"batch.{where}",
    )
    if "overlap" in spaces and bool(spaces["overlap"].notnull().any()):
        drawer.add(
            section,
            overlap(spaces),
            "The share of an example's squared gradient in the leading modes of the upstream Jacobian, mean over "
            f"examples with 95 % intervals, and that in a random subspace of the same size.{where}",
        )
    return section, ""


def _measured_and_predicted(part: Part, scores: xr.Dataset, drawer: Drawer) -> tuple[Section, str]:
    section = Section("Measured against predicted")
    if not any(bool(array.notnull().any()) for array in scores.data_vars.values()):
        return section, "Measured against predicted: the result has no prediction of what was measured."
    drawer.add(
        section,
        deviations(scores),
        "How far each measured number lies from its prediction, in units of its error. Numbers of one estimator are "
        "not independent of each other.",
    )
    return section, ""


def _progress(part: Part, _: xr.Dataset, drawer: Drawer) -> tuple[Section, str]:
    section = Section("Progress of a step")
    groups = {
        ("curved_efficiency", "best_step"): (
            "Curved efficiency: the expected decrease of the loss by a best step, over that of a best step along the "
            "gradient; and the best step size. Over the number of guesses whose mean is the step.",
            None,
        ),
        ("progress_per_pass", "progress_per_second"): (
            "Progress per cost: curved efficiency over passes and over time, beside backpropagation, which is the "
            "dashed line at 1.",
            1.0,
        ),
        ("relative_seconds", "relative_passes"): (
            "Cost of a training step over that of backpropagation: measured time, and passes as they are stated.",
            1.0,
        ),
    }
    for quantities, (caption, reference) in groups.items():
        present = [name for name in quantities if name in part.measured and _is_known(part.measured[name])]
        if not present or not {schema.ESTIMATOR, schema.AVERAGED} <= set(part.measured[present[0]].dims):
            continue
        measured = part.measured
        panels = (
            {f"step {step}": {schema.STEP: step} for step in _some_steps(measured)[schema.STEP].values}
            if schema.STEP in measured.dims
            else None
        )
        drawer.add(
            section,
            over(
                measured,
                part.predicted,
                present,
                schema.AVERAGED,
                "guesses averaged",
                panels=panels,
                reference=reference,
            ),
            caption,
        )
    if not section.figures:
        return section, "Progress per cost: not in this result; `fga.progress` and `fga.progress_per_cost` measure it."
    return section, ""


MakeSection = Callable[[Part, xr.Dataset, Drawer], tuple[Section, str]]
SECTIONS: tuple[MakeSection, ...] = (
    _bias_against_variance,
    _cosine_and_efficiency,
    _training,
    _subspace,
    _measured_and_predicted,
    _progress,
)


def _by_space(
    part: Part, quantities: Sequence[str], *exact: str, all_steps: bool = False
) -> list[tuple[str, xr.Dataset, xr.Dataset]]:
    """Every space in which the quantities are known with intervals, and both Datasets in it over all `KEYS`."""
    needed = [name + suffix for name in quantities for suffix in INTERVAL]
    measured = part.measured
    if not all(name in measured for name in [*needed, *exact]):
        return []
    # A result without this dimension, as a monitor's, is of gradients of the weights.
    spaces = [str(name) for name in measured[schema.SPACE].values] if schema.SPACE in measured.dims else []
    found = []
    for space in [name for name in SPACES_IN_ORDER if name in spaces] or ["weight"]:
        both = []
        for dataset, variables in ((measured, [*needed, *exact]), (part.predicted, list(quantities))):
            one = dataset[[name for name in variables if name in dataset]]
            one = (
                one.sel({schema.SPACE: [space]})
                if schema.SPACE in one.dims
                else one.expand_dims({schema.SPACE: [space]})
            )
            missing = [dim for dim in KEYS if dim not in one.dims]
            one = one.expand_dims({dim: [0 if dim == schema.STEP else schema.ALL_LAYERS] for dim in missing})
            both.append(one if all_steps else _some_steps(one))
        if _is_known(both[0][quantities[0]]):
            found.append((space, both[0], both[1]))
    if all_steps:
        return [
            (space, one.sel({schema.SPACE: space}), other.sel({schema.SPACE: space})) for space, one, other in found
        ]
    return found


def _tree(measured: xr.Dataset, predicted: xr.Dataset) -> xr.DataTree:
    unseen = parsed(measured.attrs.get(schema.NOT_LOOKED_AT))
    measured = measured.assign_attrs({schema.NOT_LOOKED_AT: json.dumps(unseen if isinstance(unseen, list) else [])})
    nodes = {"measured": measured} | ({"predicted": predicted} if predicted.data_vars else {})
    return xr.DataTree.from_dict(nodes)


def _why_no_figures(part: Part) -> str:
    """Dimensions for which figures have no place, or steps that are none; empty if there are figures."""
    shown = {*schema.QUANTITIES, *schema.PROGRESS, *schema.PROGRESS_PER_COST, *schema.TIMES, *OF_TRAINING}
    arrays = [part.measured[name] for name in map(str, part.measured.data_vars) if name in shown]
    arrays += [part.subspace[name] for name in map(str, part.subspace.data_vars) if name in schema.MODE_CURVES]
    known = {*KEYS, schema.AVERAGED, schema.MATRIX, schema.MODE}
    further = sorted({str(dim) for array in arrays for dim in array.dims} - known)
    if further:
        return f"the result has further dimensions, {listed(further)}; give a selection of it, or a single cell"
    for dataset in (part.measured, part.subspace):
        steps = dataset[schema.STEP].values if schema.STEP in dataset.dims else np.zeros(1, int)
        if steps.dtype.kind not in "iu" or len(np.unique(steps)) < len(steps):
            return "the steps of the result are not different whole numbers"
    return ""


def _some_steps(dataset: xr.Dataset) -> xr.Dataset:
    """At most `MOST_STEPS` of its steps, the first and the last among them."""
    n_steps = dataset.sizes[schema.STEP]
    if n_steps <= MOST_STEPS:
        return dataset
    return dataset.isel({schema.STEP: np.linspace(0, n_steps - 1, MOST_STEPS).round().astype(int)})


def _is_known(array: xr.DataArray) -> bool:
    return bool(array.notnull().any())


def _layer(name: str) -> str:
    return "all layers together" if name == schema.ALL_LAYERS else f"layer {name}"


def _some(shown: Sequence[str], of: int, words: str) -> str:
    return f"{len(shown)} of {of} {words}" if len(shown) < of else f"each of the {words}"
