"""One style an estimator: every key has its own, settings are shades, and a user's own estimator is never refused."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.markers import MarkerStyle
from numpy.typing import NDArray

import fganalysis as fga
from fganalysis.estimators import ESTIMATORS, label
from fganalysis.results import palette
from studies.bias_variance import __main__ as bias_variance

Array = NDArray[np.float64]
# Linear RGB of a colour as readers with normal vision, and without red or green cones, see it (Machado et al. 2009).
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
JUST_NOTICEABLE = 2.3  # A distance in CIELAB.


def lab(colour: str, sight: str) -> Array:
    """CIELAB of a colour as a reader sees it."""
    channels = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(SIGHT[sight] @ linear, 0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_key_has_a_colour_and_a_marker_of_its_own() -> None:
    assert set(palette.STYLES) <= set(ESTIMATORS)
    styles = {key: palette.style(key) for key in ESTIMATORS}
    twice = [(one, other) for one, other in itertools.combinations(styles, 2) if styles[one] == styles[other]]
    assert not twice, "give the new estimator a line in fganalysis.results.palette.STYLES"
    for style in styles.values():
        assert re.fullmatch("#[0-9a-f]{6}", style.colour) and style.marker in MarkerStyle.markers


@pytest.mark.parametrize("sight", SIGHT)
def test_the_estimators_of_the_main_study_are_told_apart_without_full_colour_vision(sight: str) -> None:
    colours = [lab(palette.colour(key), sight) for key in bias_variance.ESTIMATORS]
    distances = [float(np.linalg.norm(one - other)) for one, other in itertools.combinations(colours, 2)]
    assert min(distances) > 5 * JUST_NOTICEABLE
    white = lab("#ffffff", sight)
    assert all(np.linalg.norm(white - lab(style.colour, sight)) > 30 for style in palette.STYLES.values())


@pytest.mark.parametrize("sight", SIGHT)
def test_what_is_no_estimator_is_told_apart_and_looks_like_none_of_the_main_study(sight: str) -> None:
    categories = [lab(colour, sight) for colour in palette.CATEGORIES]
    distances = [float(np.linalg.norm(one - other)) for one, other in itertools.combinations(categories, 2)]
    assert min(distances) > 5 * JUST_NOTICEABLE
    main = {palette.colour(key) for key in bias_variance.ESTIMATORS}
    assert not main & {*palette.CATEGORIES, *palette.ramp(6)}


def test_a_ramp_goes_from_dark_to_light_in_grey_too() -> None:
    lightness = [lab(colour, "normal")[0] for colour in palette.ramp(6)]
    assert lightness == sorted(lightness) and np.diff(lightness).min() > 5
    assert palette.ramp(0) == [] and len(palette.ramp(1)) == 1


def test_labels_are_shown_in_words_and_users_names_as_they_are() -> None:
    shown = {
        "weight": "weight perturbation",
        "newton_schulz": "Newton–Schulz",
        "Newton-Schulz, k = 10": "Newton–Schulz, k = 10",
        "multi_tangent(k=8)": "multi-tangent, k = 8",
        "activity(layers=separate, active_only=True)": "activity perturbation, layers = separate, active only = True",
        "orthogonal, k = 10": "orthogonal, k = 10",
        "my_own(step_size=1)": "my_own(step_size=1)",
        "": "",
    }
    assert {label: palette.words(label) for label in shown} == shown
    words = [palette.words(key) for key in ESTIMATORS if key in palette.STYLES]
    assert len(set(words)) == len(words) and not any("_" in word for word in words)


def test_settings_change_no_colour() -> None:
    for name in ("orthogonal, k = 10", "orthogonal(k=2)", label(fga.estimators.OrthogonalUpstream(k=3))):
        assert palette.style(name) == palette.STYLES["orthogonal"]
    assert palette.style("Newton-Schulz, k = 10") == palette.STYLES["newton_schulz"]


def test_settings_in_one_figure_are_shades_with_markers_of_their_own() -> None:
    names = ["weight", "orthogonal(k=2)", "upstream", "orthogonal(k=5)", "orthogonal(k=10)"]
    styles = palette.styles(names)
    assert list(styles) == names and len(set(styles.values())) == len(names)
    assert styles["weight"] == palette.STYLES["weight"] and styles["upstream"] == palette.STYLES["upstream"]
    lightness = [lab(styles[name].colour, "normal")[0] for name in names if name.startswith("orthogonal")]
    assert lightness == sorted(lightness) and np.diff(lightness).min() > 5
    assert len({styles[name].marker for name in names}) == len(names)
    assert palette.shades("#102030", 1) == ["#102030"] and palette.shades("#102030", 0) == []


def test_an_estimator_of_a_users_own_has_one_style_in_every_process() -> None:
    style = palette.style("downhill_only")
    assert style.marker in palette.OTHER_MARKERS and style not in palette.STYLES.values()
    assert palette.style("downhill_only(step=0.1)") == style
    command = "from fganalysis.results import palette; print(palette.style('downhill_only'))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(style)
    for name in ("", "(", ",", "ε", "a" * 999):
        assert palette.style(name).marker


def test_more_estimators_than_styles_are_drawn_nevertheless() -> None:
    names = [f"estimator {index}" for index in range(400)]
    assert len(palette.styles(names)) == 400
    few = palette.styles(names[:30])
    assert len(set(few.values())) == 30
