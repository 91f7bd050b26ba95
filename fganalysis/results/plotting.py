"""Figures from a diagnosis: measured points with 95 % intervals, predictions as marks on the same axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from fganalysis.arguments import check_choice, check_kind, check_names, check_path
from fganalysis.results import palette, schema
from fganalysis.results.style import sheet
from fganalysis.results.tables import node, not_looked_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DPI = 130  # Pixels an inch of a saved figure.
LEAST_VARIANCE_SHOWN = 1e-4  # Smaller relative variances are rounding errors and are not drawn on the logarithmic axis.


@sheet()
def bias_variance(tree: xr.DataTree, space: str = "weight", layers: Sequence[str] | None = None) -> Figure:
    """Relative bias against relative total variance, a panel a step and layer; exact estimators are left out.

    Trainable parameters that are in no layer are named under the panels.

    Args:
        tree: from `fganalysis.diagnose`. space: "activation" or "weight".
        layers: which layers to draw, by default every one; a single one gets a row of panels, a step each.

    Raises:
        ValueError: a tree without /measured or its variables, an unknown space or layer, a layer named twice.
    """
    measured, predicted = _both(tree, space, ("variance", "relative_bias"), layers)
    figure, panels = _panels(measured)
    drawn = set()
    scale = measured["gradient_norm"] ** 2
    highest = 1.0
    for axes, (step, layer) in panels:
        for style, estimator in _styled(measured):
            where = {schema.STEP: step, schema.ESTIMATOR: estimator, schema.LAYER: layer}
            cell, norm = measured.sel(where), float(scale.sel(where))
            # A layer without a gradient has no relative numbers.
            x, x_error = _number(cell, "variance", 1 / norm if norm > 0 else np.nan)
            y, y_error = _number(cell, "relative_bias")
            if not (x > LEAST_VARIANCE_SHOWN and np.isfinite(y)):
                continue
            highest = max(highest, y)
            drawn.add(estimator)
            axes.errorbar(x, y, xerr=x_error, yerr=y_error, ms=8, mfc="none", lw=1.2, **style)
            if predicted is not None:
                theory = predicted.sel(where)
                axes.plot(
                    float(theory["variance"]) / norm,
                    float(theory["relative_bias"]),
                    marker="x",
                    ms=5,
                    mew=1.3,
                    ls="",
                    zorder=4,
                    color="black",
                )
        axes.set_xscale("log")
    for axes, _ in panels:
        _label_decades(axes)
    panels[0][0].set_ylim(-0.04 * highest, 1.15 * highest)
    _label(
        figure, "total variance / squared gradient norm", "relative bias", measured, space, drawn, predicted is not None
    )
    return figure


@sheet()
def cosine(tree: xr.DataTree, space: str = "weight") -> Figure:
    """The cosine of single guesses with the gradient: mean with interval, 5–95 % range and theory, as in bias_variance.

    Raises:
        ValueError: a tree without /measured or its variables, or an unknown space.
    """
    from matplotlib.lines import Line2D

    measured, predicted = _both(tree, space, ("cosine",), quantiles=("cosine_q05", "cosine_q95"))
    figure, panels = _panels(measured)
    drawn = set()
    for axes, (step, layer) in panels:
        for position, (style, estimator) in enumerate(_styled(measured)):
            where = {schema.STEP: step, schema.ESTIMATOR: estimator, schema.LAYER: layer}
            cell = measured.sel(where)
            mean, error = _number(cell, "cosine")
            if not np.isfinite(mean):
                continue
            drawn.add(estimator)
            axes.vlines(position, cell["cosine_q05"], cell["cosine_q95"], color=style["color"], alpha=0.3, lw=4)
            axes.errorbar(position, mean, yerr=error, ms=5, mfc="none", lw=1.2, capsize=3, **style)
            if predicted is not None:
                axes.plot(position, float(predicted.sel(where)["cosine"]), "x", ms=5, mew=1.3, color="black", zorder=4)
        axes.axhline(0, color="0.7", lw=0.8, zorder=0)
        axes.set_xticks([])
    # Most cosines are hundredths: linear below 0.01, logarithmic above, both signs.
    panels[0][0].set_yscale("symlog", linthresh=0.01)
    panels[0][0].set_yticks([-0.1, -0.01, 0, 0.01, 0.1, 1], ["−0.1", "−0.01", "0", "0.01", "0.1", "1"])
    panels[0][0].set_ylim(top=1.6)
    ranges = Line2D([], [], color="0.5", alpha=0.3, lw=4, label="5 to 95 % of guesses")
    _label(figure, "estimator", "cosine of a guess", measured, space, drawn, predicted is not None, [ranges])
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a PNG without a time stamp, so that the same data give the same file, and closes the figure.

    Raises:
        ValueError: what is no figure, a path that does not end in .png, or one that cannot be written.
    """
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    check_kind("figure", figure, Figure, "what a function of fganalysis.plotting returns")
    check_path("path", path)
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {str(path)!r}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
    except OSError as error:
        raise ValueError(f"the figure cannot be written to {str(path)!r}: {error.strerror}") from error
    plt.close(figure)
    return path


def _both(
    tree: xr.DataTree,
    space: str,
    quantities: Sequence[str],
    layers: Sequence[str] | None = None,
    quantiles: Sequence[str] = (),
) -> tuple[xr.Dataset, xr.Dataset | None]:
    """/measured and /predicted, or None, in one space and some layers, with the variables that are drawn."""
    measured = node(tree, "measured")
    check_choice("space", space, [str(known) for known in measured[schema.SPACE].values])
    intervals = [name + bound for name in quantities for bound in ("", schema.LOW, schema.HIGH)]
    needed = {"measured": ["gradient_norm", *intervals, *quantiles]}
    if "predicted" in tree.children:
        needed["predicted"] = list(quantities)
    chosen = [str(layer) for layer in measured[schema.LAYER].values]
    if layers is not None:
        check_names("layers", layers, chosen)
        chosen = list(layers)
    datasets = []
    for name, variables in needed.items():
        dataset = node(tree, name)
        missing = [variable for variable in variables if variable not in dataset]
        if missing:
            raise ValueError(f"/{name} has no variable {missing[0]!r}: give what fganalysis.diagnose returns")
        datasets.append(dataset.sel({schema.SPACE: space, schema.LAYER: chosen}))
    return datasets[0], datasets[1] if len(datasets) > 1 else None


def _styled(measured: xr.Dataset) -> list[tuple[dict[str, Any], str]]:
    """Every estimator with its colour and its marker, the same in every figure."""
    styles = palette.styles([str(name) for name in measured[schema.ESTIMATOR].values])
    return [({"color": style.colour, "marker": style.marker, "ls": ""}, name) for name, style in styles.items()]


def _panels(measured: xr.Dataset) -> tuple[Figure, list[tuple[Axes, tuple[int, str]]]]:
    import matplotlib.pyplot as plt

    steps, layers = measured[schema.STEP].values, [str(name) for name in measured[schema.LAYER].values]
    in_a_row = len(layers) == 1
    rows, columns = (1, len(steps)) if in_a_row else (len(steps), len(layers))
    width, height = (2.4, 2.8) if in_a_row else (1.9, 2.1)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(width * columns + 1.8, height * rows + 0.9),
        sharex="all" if in_a_row else "col",
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    panels = []
    for row, step in enumerate(steps):
        for column, layer in enumerate(layers):
            axes = grid[0, row] if in_a_row else grid[row, column]
            name = "all layers" if layer == schema.ALL_LAYERS else f"layer {layer}"
            if in_a_row:
                axes.set_title(f"step {int(step)}, {name}")
            elif row == 0:
                axes.set_title(name)
            if column == 0 and not in_a_row:
                axes.set_ylabel(f"step {int(step)}")
            panels.append((axes, (int(step), layer)))
    return figure, panels


def _label_decades(axes: Axes) -> None:
    """Powers of ten alone are labelled on the x-axis, at least two of them: labels between them would overlap."""
    from matplotlib.ticker import NullFormatter

    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = np.log10(axes.get_xlim())
    if np.floor(high) - np.ceil(low) < 1:
        axes.set_xlim(10 ** np.floor(low), 10 ** np.ceil(high))


def _number(dataset: xr.Dataset, name: str, scale: float = 1.0) -> tuple[float, list[list[float]]]:
    """A measured value, and the distances of the bounds of its 95 % interval below and above it, for error bars."""
    value, low, high = (float(dataset[name + suffix]) * scale for suffix in ("", schema.LOW, schema.HIGH))
    return value, [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _label(
    figure: Figure,
    x: str,
    y: str,
    measured: xr.Dataset,
    space: str,
    drawn: set[str],
    with_predictions: bool,
    others: Sequence[Line2D] = (),
) -> None:
    """Adds axis labels, the parameters in no layer, and a legend of the estimators and of what else is drawn."""
    from matplotlib.lines import Line2D

    unseen = not_looked_at(measured)
    figure.supxlabel(f"{x}\nnot looked at: {unseen}" if unseen else x)
    figure.supylabel(f"{y}, {space} space")
    handles = [
        Line2D([], [], mfc="none", label=palette.words(name), **style)
        for style, name in _styled(measured)
        if name in drawn
    ]
    handles += others
    if with_predictions:
        handles.append(Line2D([], [], marker="x", ls="", color="black", label="predicted"))
    figure.legend(handles=handles, loc="outside right upper", alignment="left", title="measured, 95 % interval")
