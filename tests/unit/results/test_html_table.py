"""Tables as HTML: how many digits a number has, what stands in a cell, and what a notebook shows of a summary."""

from __future__ import annotations

import math

import pandas as pd
import pytest

import fganalysis as fga
from fganalysis.results import html_table
from fganalysis.results.number_text import Interval, plain
from tests import laws

TREE = fga.diagnose(laws.tiny_snapshot((3, 4, 2), n_examples=4), ["backpropagation", "weight"], n_guesses=64)


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.12345, 0.1, 0.15, "0.123 (0.1 to 0.15)"),
        (0.12345, 0.123, 0.124, "0.1235 (0.123 to 0.124)"),
        (12345.0, 10000.0, 15000.0, "12345 (10000 to 15000)"),
        (-2.0, -4.0, 0.0, "−2 (−4 to 0)"),
        (2.0, 1.0, math.inf, "2 (1 to ∞)"),
        (1.0, 1.0, 1.0, "1 (exact)"),
        (0.5, math.nan, math.nan, "0.5 (no interval)"),
        (-0.0, -1.0, 1.0, "0 (−1 to 1)"),
        (1.23456789e-9, 1e-9, 2e-9, "1.2e-09 (1e-09 to 2e-09)"),
    ],
)
def test_a_number_has_the_digits_that_its_interval_gives_it(
    value: float, low: float, high: float, expected: str
) -> None:
    interval = Interval(low, high)
    assert f"{interval.digits(value)} ({interval.text(value)})" == expected


def test_flags_are_words() -> None:
    assert Interval(0.1, 0.2, wide=True).text(0.15) == "0.1 to 0.2, wide"
    assert Interval(0.1, 0.2, wide=True, short=True).text(0.15) == "0.1 to 0.2, perhaps too short"
    assert plain(math.nan) == "–"


def test_a_cell_has_value_interval_prediction_and_z_and_text_is_escaped() -> None:
    frame = pd.DataFrame(
        {
            "name": ["<i>"],
            "width": [16],
            "x": [0.5],
            "x_low": [0.4],
            "x_high": [0.6],
            "x_predicted": [0.7],
            "x_z": [-3.9],
            "y": [math.nan],
        }
    )
    html = html_table.of(frame, ["name", "width"], {"x": "a & b"})
    assert '<td data-value="&lt;i&gt;">&lt;i&gt;</td><td data-value="16">16</td>' in html
    lines = "0.5<br><small>0.4 to 0.6</small><br><small>predicted 0.7, z = −3.9</small>"
    assert f'<td class="number" data-value="0.5">{lines}</td>' in html
    assert '<td class="number" data-value="">–</td>' in html and "x<br><small>a &amp; b</small>" in html
    assert html.count("<th ") == 4


def test_a_notebook_shows_a_summary_with_its_intervals() -> None:
    frame = fga.summary(TREE)
    html = frame._repr_html_()
    assert html.count("<tr>") == 1 + len(frame) and 'title="mean cosine of a guess with the gradient"' in html
    row = frame.query("estimator == 'weight' and layer == 'all'").iloc[0]
    interval = Interval(row["cosine_low"], row["cosine_high"], row["cosine_wide"] == 1, row["cosine_short"] == 1)
    assert f"{interval.digits(row['cosine'])}<br><small>{interval.text(row['cosine'])}</small>" in html
    assert "cosine low" not in html and "<small>exact</small>" in html


def test_a_summary_is_a_frame_in_everything_else() -> None:
    frame = fga.summary(TREE)
    plain_frame = pd.DataFrame(frame)
    assert frame.to_string() == plain_frame.to_string() and repr(frame) == repr(plain_frame)
    chosen = frame.query("layer == 'all'")[["estimator", "cosine", "cosine_low", "cosine_high"]]
    assert " to " in chosen._repr_html_() and isinstance(frame["cosine"], pd.Series)


def test_of_a_long_summary_a_notebook_shows_as_many_rows_as_pandas() -> None:
    with pd.option_context("display.max_rows", 3):
        html = fga.summary(TREE)._repr_html_()
    assert html.count("<tr>") == 1 + 3 and "rows, of which the first 3 are shown" in html
