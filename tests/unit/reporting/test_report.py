"""A page says what was measured with every interval, stands alone, escapes names and is the same bytes each time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fganalysis as fga
from fganalysis.results import schema
from fganalysis.results.number_text import Interval
from tests.refusals import refusal
from tests.unit.reporting import pages


def test_two_calls_write_the_same_bytes_and_say_where(tmp_path: Path) -> None:
    part = pages.tree().map_over_datasets(lambda node: node.isel(step=[0]).sel(layer=["all"]) if node.sizes else node)
    path = tmp_path / "deeper" / "page.htm"
    assert fga.report(part, path) == path
    assert path.read_bytes() == pages.page_of(part).encode() and b"<svg" in path.read_bytes()


def test_the_page_asks_no_other_address_for_anything() -> None:
    parsed = pages.Parsed(pages.page())
    loading = {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}
    given = [value or "" for _, attributes in parsed.tags for name, value in attributes.items() if name in loading]
    assert given and all(re.fullmatch(r"#[\w-]+", value) for value in given)
    assert {"img", "iframe", "object", "embed", "base", "form", "image"}.isdisjoint(tag for tag, _ in parsed.tags)
    assert set(re.findall(r"url\(([^)]{0,2})", pages.page())) == {"#p"}
    assert "@import" not in pages.page()
    # Where an address stands, it is in a name that the user gave.
    named = pages.page().count("http://ex")
    assert named and len(re.findall(r"\w+://", pages.page())) == named
    (policy,) = [
        attributes["content"]
        for tag, attributes in parsed.tags
        if "content" in attributes and "http-equiv" in attributes
    ]
    assert policy is not None and policy.startswith("default-src 'none'")


def test_what_users_name_is_escaped() -> None:
    parsed = pages.Parsed(pages.page())
    assert parsed.wrong == [] and parsed.open == []
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1
    assert not any(tag in ("b", "img") for tag, _ in parsed.tags)
    words = "".join(parsed.words)
    assert pages.EVIL in words and pages.LAYER in words and f"RuntimeError: {pages.FAILED}." in words


def test_figures_show_names_as_they_are_though_shorter() -> None:
    drawn = pages.page().split("<h3>Bias against variance")[1].split("<table")[0]
    assert "_&lt;/td&gt;&lt;img" in drawn and "hold" not in drawn and "…" in drawn
    assert "&lt;script&gt;ba…pt&gt;_$x$<" in drawn


def test_the_facts_are_those_of_the_attributes() -> None:
    words = " ".join(" ".join(pages.Parsed(pages.page()).words).split())
    for text in ("Network, 51 parameters in 2 layers", "loss cross_entropy", "examples in the batch 8", "seed 0"):
        assert text in words
    assert "guesses of each estimator 64" in words and "steps of training 0, 7" in words
    assert "settings of activity noise = Gaussian, shared = no" in words
    assert f"failing: not measured: RuntimeError: {pages.FAILED}." in words
    assert "fganalysis" in words.split("versions of what made this page")[1]


def test_every_number_of_the_table_has_its_interval_prediction_and_z() -> None:
    table = next(table for table in pages.Parsed(pages.page()).tables if "efficiency" in table[0])
    summary = fga.summary(pages.tree()).set_index(["step", "estimator", "space", "layer"])
    column = table[0].index("efficiency")
    z = fga.z_scores(pages.tree())["efficiency"]
    measured = 0
    for row in table[1:]:
        key = (int(row[0]), *row[1:4])
        expected = summary.loc[key]
        value, low, high = (expected["efficiency" + suffix] for suffix in ("", schema.LOW, schema.HIGH))
        interval = Interval(low, high, expected["efficiency_wide"] == 1, expected["efficiency_short"] == 1)
        lines = row[column].split("\n")
        assert lines[:2] == [interval.digits(value), interval.text(value)] and " to " in lines[1]
        known = z.sel(step=key[0], estimator=key[1], space=key[2], layer=key[3])
        assert lines[2:] == (
            [f"predicted {interval.digits(expected['efficiency_predicted'])}, z = {float(known):.2g}".replace("-", "−")]
            if np.isfinite(known)
            else []
        )
        measured += 1
    # Of two steps: in both spaces activity, at the weights the function too; two layers and all.
    assert measured == 2 * 3 * (2 + 1)
    assert not any("no interval" in cell for row in table for cell in row)


def test_sections_come_with_figures_that_a_reader_is_told_of() -> None:
    parsed = pages.Parsed(pages.page())
    headings = re.findall(r"<h3>(.*?)</h3>", pages.page())
    assert headings == [
        "What was measured on what",
        "Bias against variance",
        "Cosine and efficiency",
        "The subspace of the gradient",
        "Measured against predicted",
        "All numbers",
        "What this result does not have",
    ]
    figures = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert len(figures) > 5 and all(one["role"] == "img" and one["aria-label"] for one in figures)
    identifiers = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    assert ("viewport", "width=device-width, initial-scale=1") in [
        (attributes.get("name"), attributes.get("content")) for tag, attributes in parsed.tags if tag == "meta"
    ]
    assert "prefers-color-scheme: dark" in pages.page() and "overflow-x: auto" in pages.page()


def test_what_a_result_lacks_is_left_out_with_a_sentence() -> None:
    text = pages.page_of(pages.tree()["measured"].to_dataset().isel(step=[0]).sel(space=["activation"]))
    lacking = text.split("What this result does not have")[1]
    for beginning in ("Over steps", "Energy curves", "Measured against predicted", "Progress per cost"):
        assert f"<li>{beginning}: " in lacking
    assert "predicted" not in text.split("<table")[1].split("</table>")[0]


def test_of_gradients_without_a_network() -> None:
    gradient = {"w": np.array([1.0, 2.0, 3.0])}
    draws = [{"w": gradient["w"] + noise} for noise in np.random.default_rng(0).normal(size=(64, 3))]
    dataset = fga.measure(draws, gradient, n_guesses=64)
    text = pages.page_of(dataset)
    assert "parameter space" in text and "The result does not say of which network and which loss it is." in text


PROGRESS = ("curved_efficiency", "best_step")


def progress() -> xr.Dataset:
    """As `fganalysis.progress` and `progress_per_cost` have it, with a bound that is not finite."""
    shape = {schema.STEP: [0], schema.ESTIMATOR: ["weight"], schema.AVERAGED: [1, 2, 4]}
    value = xr.DataArray(np.array([[[0.1, 0.2, 0.3]]]), coords=shape)
    arrays = {}
    for name in (*PROGRESS, "progress_per_pass"):
        arrays |= {name: value, name + schema.LOW: value / 2, name + schema.HIGH: value * [2.0, 2.0, np.inf]}
        arrays |= {name + schema.SE: value / 4}
    arrays |= {name + schema.PREDICTED: value * 1.5 for name in PROGRESS}
    arrays |= {name + schema.PREDICTED + schema.SE: value * 0 for name in PROGRESS}
    cautions = json.dumps({"weight": ["the interval of the curvature holds zero"]})
    return schema.annotate(xr.Dataset(arrays, attrs={schema.CAUTIONS: cautions, "n_guesses": 64}))


def test_of_the_progress_of_a_step() -> None:
    text = pages.page_of(progress())
    assert "<h3>Progress of a step</h3>" in text and "Progress per cost: curved efficiency over passes" in text
    assert "<li>weight: the interval of the curvature holds zero.</li>" in text
    table = next(table for table in pages.Parsed(text).tables if "curved efficiency" in table[0])
    cell = table[1][table[0].index("curved efficiency")].split("\n")
    assert cell == ["0.1", "0.05 to 0.2", f"predicted 0.15, z = −{1.96 * 0.05 / 0.1:.2g}"]
    assert table[3][table[0].index("curved efficiency")].split("\n")[1] == "0.15 to ∞"


class Monitor:
    """What keeps a Dataset of many steps, in which predictions stand beside the numbers and all layers are one."""

    @property
    def dataset(self) -> xr.Dataset:
        steps, rows = np.arange(0, 4000, 10), {}
        shape = {schema.STEP: steps, schema.ESTIMATOR: ["a", "b"], schema.LAYER: [schema.ALL_LAYERS]}
        value = xr.DataArray(np.full((400, 2, 1), 0.1), coords=shape)
        for name in ("cosine", "efficiency"):
            rows |= {name: value, name + schema.LOW: value / 2, name + schema.HIGH: value * 2}
            rows |= {name + schema.SE: value / 4, name + schema.PREDICTED: value}
        rows["loss"] = xr.DataArray(1 / (1 + steps), coords={schema.STEP: steps})
        return schema.annotate(xr.Dataset(rows))


def test_of_a_monitor() -> None:
    text = pages.page_of(Monitor())
    assert "Over the steps of training" in text and "<h3>The training</h3>" in text and "By layer" not in text
    assert "Of 400 steps 300 are shown, evenly spaced, the first and the last among them." in text
    table = next(table for table in pages.Parsed(text).tables if "cosine" in table[0])
    assert len(table) == 1 + 600 and (table[1][0], table[-1][0]) == ("0", "3990")


def test_of_a_study_s_folder(tmp_path: Path) -> None:
    parts = [name + suffix for name in ("cosine", "gradient_norm") for suffix in ("", *schema.BESIDE)]
    whole = pages.tree().map_over_datasets(lambda node: node[[name for name in parts if name in node]])
    for estimator in ("activity", pages.EVIL):
        number = list(whole["measured"]["estimator"].values).index(estimator)
        cell = xr.DataTree.from_dict(
            {name: whole[name].to_dataset().isel(estimator=[number]) for name in ("measured", "predicted")}
        )
        fga.results.store.write(cell, tmp_path / "cells" / "state" / f"estimator_{number}.nc")
    odd = xr.Dataset({"seconds_taken": ("width", [1.0, 2.0])}, coords={"width": [16, 32]}, attrs={"dataset": "none"})
    fga.results.store.write(odd, tmp_path / "cells" / "times.nc")
    text = pages.page_of(tmp_path / "cells")
    # The estimators of one gradient are one part, and what nobody knows is a table.
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["state", "times"]
    estimators = {row[1] for table in pages.Parsed(text).tables if "cosine" in table[0] for row in table[1:]}
    assert estimators == {"activity", pages.EVIL}
    table = next(table for table in pages.Parsed(text).tables if "seconds taken" in table[0])
    assert table[1:] == [["16", "1\nno interval"], ["32", "2\nno interval"]]
    assert text == pages.page_of(fga.open_results(tmp_path / "cells"))


def test_of_many_layers_whose_names_are_alike() -> None:
    one = Monitor().dataset.isel(step=0, layer=0, drop=True)
    names = [*(f"transformer.blocks.{number}.attention.query" for number in range(50)), schema.ALL_LAYERS]
    text = pages.page_of(xr.concat([one] * 51, "layer").assign_coords(layer=names))
    ticks = re.findall(r">(\d+ tran[^<]*|all)</text>", text)
    assert ticks[0] == "1 transfor…n.query" and len(set(ticks)) == len(ticks)
    assert f"{names[11]} and 39 more" in text and names[40] in text


def test_steps_that_are_no_whole_numbers_have_tables_alone() -> None:
    dataset = Monitor().dataset.isel(step=[0, 1])
    for steps in (["early", "late"], [0.5, 1.5], [3, 3]):
        text = pages.page_of(dataset.assign_coords(step=steps))
        assert "Figures: the steps of the result are not different whole numbers." in text and "<svg" not in text


def test_attributes_of_others_are_shown_as_they_are() -> None:
    odd = {"settings": "{broken", "not_measured": "[1]", "not_looked_at": "x", "cautions": "[]", "theirs": "<i>1</i>"}
    text = pages.page_of(Monitor().dataset.isel(step=[0]).assign_attrs(odd))
    assert "<dt>theirs</dt><dd>&lt;i&gt;1&lt;/i&gt;</dd>" in text


def test_the_weights_of_a_network_are_cut() -> None:
    text = pages.page_of(xr.Dataset({"kernel": (("unit", "input"), np.zeros((1000, 300)))}))
    assert "The part has curves alone" in text
    text = pages.page_of(xr.Dataset({"kernel": (("row", "column"), np.zeros((1000, 300)))}))
    assert "Of 300000 rows the first 300 are shown." in text


def test_further_dimensions_have_tables_and_no_figures() -> None:
    several = xr.concat([progress(), progress()], "width").assign_coords(width=[1, 2])
    text = pages.page_of(several)
    assert "Figures: the result has further dimensions, width; give a selection of it" in text and "<svg" not in text


@pytest.mark.parametrize(
    ("results", "path", "expected"),
    [
        (None, "a.html", "results must be a Dataset, a DataTree or the path of a study's results, got None"),
        (xr.Dataset(), "a.html", "results has no numbers to show: give what fga.diagnose, fga.sample or fga.progress"),
        (xr.DataTree(), "a.html", "results has no numbers to show"),
        (progress(), "a.pdf", "path must end in .html, got 'a.pdf'"),
        (progress(), 3, "path must be a path, got 3"),
        ("no/such/folder", "a.html", "there is no result at no/such/folder: run the study first"),
    ],
)
def test_wrong_calls_are_refused_in_a_sentence(results: object, path: object, expected: str) -> None:
    said = refusal(lambda: fga.report(results, path))  # type: ignore[arg-type]
    assert said is not None and said.startswith(expected)


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    said = refusal(lambda: fga.report(xr.Dataset({"x": 1.0}), tmp_path / "file" / "page.html"))
    assert said is not None and said.startswith("the page cannot be written: ")
