"""Figures: what is drawn is what was measured, everything drawn is named, and the same data give the same file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import OrthogonalUpstream
from fganalysis.results import palette, plotting, schema

Draw = Callable[..., Figure]
FIGURES: dict[str, Draw] = {"bias_variance": plotting.bias_variance, "cosine": plotting.cosine}
LAYERS = ("0", "2", "all")
STEPS = (0, 7)


def snapshot(step: int) -> Snapshot:
    network = fga.networks.mlp([4, 6, 3], bias=False, seed=step)
    generator = torch.Generator().manual_seed(step)
    inputs, targets = torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets, step=step)


TREE = fga.diagnose(
    [snapshot(step) for step in STEPS],
    ["backpropagation", "weight", "activity", OrthogonalUpstream(k=2), "upstream"],
    n_guesses=256,
)
ALL = [str(name) for name in TREE["measured"]["estimator"].to_numpy()]


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def panels(figure: Figure) -> dict[tuple[int, str], Axes]:
    """Panels by step and layer: a row a step, a column a layer."""
    return dict(zip([(step, layer) for step in STEPS for layer in LAYERS], figure.axes, strict=True))


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Neighbouring tick labels of an axis, as they are drawn, that cover a part of each other."""
    figure.canvas.draw()
    found = []
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        low, high = sorted(axis.get_view_interval())
        labels = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
        labels = [label for label in labels if label.get_visible() and label.get_text()]
        boxes = [(label.get_text(), label.get_window_extent()) for label in labels]
        found += [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]
    return found


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
@pytest.mark.parametrize("alike", [False, True])
def test_no_tick_labels_overlap_and_an_axis_has_two(draw: Draw, alike: bool) -> None:
    tree = xr.DataTree.from_dict({name: TREE[name].to_dataset().isel(step=[0]) for name in ("measured", "predicted")})
    if alike:  # Variances within a decade, where between powers of ten there would be labels too.
        for name in ("variance", "variance_low", "variance_high"):
            tree["measured"][name] = tree["measured"][name] * 0 + tree["measured"]["gradient_norm"] ** 2 * 30
    figure = draw(tree)
    assert not overlapping(figure)
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.xaxis.get_majorticklocs() if low <= tick <= high]
        assert draw is plotting.cosine or len(ticks) >= 2


def point(line: Line2D) -> tuple[float, float]:
    (x,), (y,) = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    return float(x), float(y)


def measured_points(axes: Axes) -> list[tuple[float, float]]:
    bars = [bar for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
    return [point(bar[0]) for bar in bars]


def predicted_points(axes: Axes) -> list[tuple[float, float]]:
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    return [point(line) for line in crosses]


def interval(axes: Axes, index: int) -> np.ndarray:
    """The ends of the vertical bar of one measured point."""
    bars = [bar for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
    return bars[index][2][-1].get_segments()[0][:, 1]


def chosen(node: str, space: str, step: int, layer: str, estimator: str) -> xr.Dataset:
    return TREE[node].to_dataset().sel(space=space, step=step, layer=layer, estimator=estimator)


@pytest.mark.parametrize("space", schema.SPACES)
def test_bias_variance_shows_relative_bias_and_variance(space: str) -> None:
    estimators = [name for name in ALL if name != "backpropagation" and (name, space) != ("weight", "activation")]
    for (step, layer), axes in panels(plotting.bias_variance(TREE, space)).items():
        for points, node in ((measured_points(axes), "measured"), (predicted_points(axes), "predicted")):
            expected = []
            for name in estimators:
                own = chosen(node, space, step, layer, name)
                norm = float(chosen("measured", space, step, layer, name)["gradient_norm"])
                expected.append((float(own["variance"]) / norm**2, float(own["relative_bias"])))
            np.testing.assert_allclose(points, expected, rtol=1e-12)
        own = chosen("measured", space, step, layer, estimators[-1])
        np.testing.assert_allclose(interval(axes, -1), [own["relative_bias_low"], own["relative_bias_high"]])
        assert axes.get_xscale() == "log"


@pytest.mark.parametrize("space", schema.SPACES)
def test_cosine_shows_mean_range_and_prediction(space: str) -> None:
    estimators = [name for name in ALL if (name, space) != ("weight", "activation")]
    for (step, layer), axes in panels(plotting.cosine(TREE, space)).items():
        own = [chosen("measured", space, step, layer, name) for name in estimators]
        positions = [ALL.index(name) for name in estimators]
        expected = [(position, float(one["cosine"])) for position, one in zip(positions, own, strict=True)]
        np.testing.assert_allclose(measured_points(axes), expected, rtol=1e-12)
        ranges = [
            segment[:, 1]
            for lines in axes.collections
            if isinstance(lines, LineCollection) and lines.get_alpha() == 0.3
            for segment in lines.get_segments()
        ]
        np.testing.assert_allclose(ranges, [[float(one["cosine_q05"]), float(one["cosine_q95"])] for one in own])
        crosses = dict(predicted_points(axes))
        for position, name in zip(positions, estimators, strict=True):
            theory = float(chosen("predicted", space, step, layer, name)["cosine"])
            np.testing.assert_allclose(crosses[position], theory, rtol=1e-12)


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
@pytest.mark.parametrize("space", schema.SPACES)
def test_everything_drawn_is_named(draw: Draw, space: str) -> None:
    figure = draw(TREE, space)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    shown = [name for name in ALL if (name, space) != ("weight", "activation")]
    if draw is plotting.bias_variance:
        # Without variance there is no place on a logarithmic axis.
        shown.remove("backpropagation")
    ranges = ["5 to 95 % of guesses"] if draw is plotting.cosine else []
    assert names == [*map(palette.words, shown), *ranges, "predicted"]
    assert "orthogonal, k = 2" in names
    assert legend.get_title().get_text() == "measured, 95 % interval"
    handles = [handle for handle in legend.legend_handles if isinstance(handle, Line2D)]
    styles = {text: handle.get_color() for text, handle in zip(names, handles, strict=True)}
    assert len(set(map(str, styles.values()))) == len(names)
    styles = {name: styles[palette.words(name)] for name in shown}
    for axes in figure.axes:
        for bar, name in zip(axes.containers, shown, strict=True):
            assert bar[0].get_color() == styles[name]
    assert space in figure.get_supylabel() and figure.get_supxlabel()
    assert [axes.get_title() for axes in figure.axes[:3]] == ["layer 0", "layer 2", "all layers"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["step 0", "step 7"]


def test_axes_without_a_unit_say_what_was_divided_by_what() -> None:
    figure = plotting.bias_variance(TREE)
    assert figure.get_supxlabel() == "total variance / squared gradient norm"
    assert figure.get_supylabel() == "relative bias, weight space"
    assert plotting.cosine(TREE).get_supylabel() == "cosine of a guess, weight space"
    for name in ("relative_bias", "cosine"):
        assert schema.QUANTITIES[name].units == "1"


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_the_legend_is_beside_the_panels(draw: Draw) -> None:
    figure = draw(TREE)
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_one_layer_is_a_row_of_steps() -> None:
    figure = plotting.bias_variance(TREE, layers=["all"])
    assert [axes.get_title() for axes in figure.axes] == ["step 0, all layers", "step 7, all layers"]
    first, second = (axes.get_position() for axes in figure.axes)
    assert first.y0 == second.y0 and first.x1 < second.x0
    assert measured_points(figure.axes[1]) == measured_points(panels(plotting.bias_variance(TREE))[7, "all"])


def test_a_measurement_without_a_prediction_is_drawn() -> None:
    alone = xr.DataTree.from_dict({"measured": TREE["measured"].to_dataset()})
    for draw in FIGURES.values():
        figure = draw(alone)
        assert all(measured_points(axes) and not predicted_points(axes) for axes in figure.axes)
        assert "predicted" not in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_the_same_data_give_the_same_bytes(draw: Draw, tmp_path: Path) -> None:
    first, second = (plotting.save(draw(TREE), tmp_path / "made" / f"{name}.png") for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")
    assert not plt.get_fignums(), "save() closes the figure"


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_bad_arguments_are_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match="space must be 'activation' or 'weight', got 'nonsense'"):
        draw(TREE, "nonsense")
    with pytest.raises(ValueError, match="the tree has no /measured node"):
        draw(xr.DataTree())


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="layers has the unknown name 'nonsense'; known ones: 0, 2, all"):
        plotting.bias_variance(TREE, layers=["nonsense"])
