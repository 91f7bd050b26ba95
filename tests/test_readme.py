"""The README against the code: its Python runs as printed, and its numbers, names and paths are the code's.

So are the numbers and tables of the pages that it sends its readers to, docs/quantities.md and docs/any_scale.md.
"""

import contextlib
import importlib
import io
import math
import re
import tomllib
from typing import Any

import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ESTIMATORS, ActivityPerturbation
from fganalysis.measuring import blocks, streamed
from fganalysis.results import schema
from fganalysis.statistics import intervals, squared_norm
from studies.bias_variance import __main__ as bias_variance
from tests import pages
from tests.pages import ROOT, without_numbers

README, QUANTITIES = pages.text_of("README.md"), pages.text_of("docs/quantities.md")
SCALE, STEPS = pages.text_of("docs/any_scale.md"), pages.text_of("docs/steps_and_costs.md")
OWN, ADVICE = pages.code_of(README)
ROUNDING = 5e-3  # Three digits are printed: at most half of the last one, relative to 1.00.
HIDDEN_LAYERS = 3
MINUTES, WORDS_A_MINUTE = 3, 300


def prose_of(text: str) -> str:
    """What is read from beginning to end: no code, no tables."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("|"))


def names(first_heading: str) -> list[str]:
    return [row[0].strip("`") for row in pages.table(README, first_heading)]


def test_the_readme_is_read_in_three_minutes() -> None:
    assert len(prose_of(README).split()) <= MINUTES * WORDS_A_MINUTE


@pytest.fixture(scope="module")
def own_example() -> dict[str, Any]:
    """The names of the first example, and what it has printed as "printed"."""
    found: dict[str, Any] = {"__name__": "readme"}
    printed = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(printed):
        exec(compile(OWN, "README.md", "exec"), found)
    return found | {"printed": printed.getvalue()}


def test_the_first_example_prints_what_it_says(own_example: dict[str, Any]) -> None:
    shown, _ = pages.printed_in(README)
    assert without_numbers(own_example["printed"]) == without_numbers(shown)


def test_advice_takes_ten_lines_and_is_that_of_the_page_which_another_test_runs() -> None:
    assert len(ADVICE.splitlines()) <= 10
    assert ADVICE in pages.code_of(STEPS)
    (all_of_it,) = pages.printed_in(STEPS)
    _, some = pages.printed_in(README)
    assert set(some.splitlines()) <= set(all_of_it.splitlines())


def seconds_of_a_million() -> str:
    """What a million guesses by law take on a hundred million weights, as the page says."""
    page = pages.text_of("docs/results/throughput_by_law.md")
    assert "on 10⁸ weights" in page
    (seconds,) = re.findall(r"1,000,000 guesses with all estimates and intervals take ([\d.]+) s", page)
    return str(seconds)


def test_the_cost_of_a_million_guesses_by_law_is_that_of_the_page() -> None:
    text = f"a million guesses on a network of a hundred million weights take {seconds_of_a_million()} s of one"
    assert text in " ".join(SCALE.split())


def test_keeping_what_goes_downhill_halves_the_gradient(own_example: dict[str, Any]) -> None:
    frame = fga.summary(own_example["tree"], ["shrinkage"]).query("layer == 'all' and space == 'weight'")
    row = frame.set_index("estimator").loc["downhill_only"]
    # 5 standard errors; 1024 guesses see an error of about 0.2.
    assert abs(row["shrinkage"] - 0.5) <= 5 * row["shrinkage_se"]
    assert row["shrinkage_se"] < 0.06
    assert math.isnan(row["shrinkage_predicted"])


def test_estimators_are_those_of_the_table() -> None:
    assert {row[0].strip("`"): row[1].strip("`") for row in pages.table(README, "key")} == {
        key: cls.__name__ for key, cls in ESTIMATORS.items()
    }


def named_in_tables(text: str) -> set[str]:
    """The names in the first columns of all tables of names."""
    return {
        name
        for rows in pages.tables(text)
        if rows[0][0] == "name"
        for row in rows[1:]
        for name in re.findall(r"`(\w+)`", row[0])
    }


def test_quantities_and_their_units_are_those_of_the_schema() -> None:
    known = schema.QUANTITIES | schema.EXACT | schema.PROGRESS
    defined = [rows for rows in pages.tables(QUANTITIES) if rows[0] == ["name", "meaning", "formula", "units"]]
    listed = {row[0].strip("`"): row[3].replace("²", "^2").replace("³", "^3") for rows in defined for row in rows[1:]}
    same = {name: variable.units.replace("^4", "⁴") for name, variable in known.items() if name in listed}
    assert {name: units.replace("^4", "⁴") for name, units in listed.items()} == same
    theory_alone = {name for name in known if name not in listed}
    assert all(f"`{name}`" in QUANTITIES for name in theory_alone) and theory_alone <= set(schema.EXACT)
    assert named_in_tables(README) == set(listed)


def test_every_variable_of_a_result_is_explained() -> None:
    """Without those beside others, as ``x_low``."""
    beside = (*schema.BESIDE, schema.TAIL, schema.PREDICTED)
    known = schema.variables()
    plain = {name for name in known if not any(name.removesuffix(end) in known for end in beside if name.endswith(end))}
    assert len(plain) > 80
    assert [name for name in sorted(plain) if f"`{name}`" not in QUANTITIES] == []


def test_every_estimated_quantity_has_a_line_on_its_interval() -> None:
    estimated = schema.QUANTITIES | schema.PROGRESS | schema.TIMES | schema.PROGRESS_PER_COST | schema.DIFFERENCES
    (intervals_of,) = [rows for rows in pages.tables(QUANTITIES) if rows[0] == ["name", "interval"]]
    listed = [name for row in intervals_of[1:] for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(listed) == sorted([*estimated, "gradient_norm"])


def test_studies_are_those_of_the_folder_and_their_questions_open_their_docstrings() -> None:
    runnable = (ROOT / "studies").glob("*/__main__.py")
    assert sorted(names("study")) == sorted(path.parent.name for path in runnable), (
        "give the new study a row in the README's table: its name and the question that opens its docstring"
    )
    for name, question in pages.table(README, "study"):
        docstring = importlib.import_module(f"studies.{name.strip('`')}.__main__").__doc__
        assert docstring is not None
        assert " ".join(docstring.split()).startswith(question)


@pytest.fixture(scope="module")
def before_training() -> Snapshot:
    """The network of `make demo` before training, on its batch."""
    settings = bias_variance.Settings()
    data = fga.datasets.load(settings.dataset)
    network = fga.networks.mlp(demo_sizes(), bias=False, seed=settings.seeds[0])
    batch = data.train_inputs[: settings.batch], data.train_targets[: settings.batch]
    return fga.capture(network, torch.nn.functional.cross_entropy, *batch)


def demo_sizes() -> list[int]:
    settings = bias_variance.Settings()
    data = fga.datasets.load(settings.dataset)
    classes = int(data.train_targets.max()) + 1
    return [data.train_inputs.shape[1], *(settings.widths * HIDDEN_LAYERS), classes]


def test_the_table_of_switches_is_what_theory_says(before_training: Snapshot) -> None:
    rows = pages.table(QUANTITIES, "noise")
    assert len(rows) == 4
    for noise, slope, *values in rows:
        for layers, value in zip(("joint", "separate"), values, strict=True):
            switches: dict[str, Any] = {"slope": slope.split()[0], "layers": layers}
            own = ActivityPerturbation(shared=noise == "shared", **switches)
            found = fga.predict(before_training, own).sel(space="weight", layer=before_training.layers[0])
            assert float(value) == pytest.approx(float(found["variance"] / found["gradient_norm"] ** 2), rel=ROUNDING)
            assert ("biased" in slope) == (float(found["relative_bias"]) > 1e-6)
    assert ActivityPerturbation() == ActivityPerturbation(shared=False, slope="example", layers="joint")


def numbers_in(text: str) -> set[str]:
    """Numbers outside code, tables, formulas of a ratio, links and the numbering of lists."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|^\d+\. |MNIST-1D|1/|\.(?=\s|$)", "", prose_of(text), flags=re.MULTILINE)
    return set(re.findall(r"(?<!\w)\d[\d.]*(?:-\d+)*[⁰¹²³⁴-⁹]*", text))


def test_a_stray_number_is_found() -> None:
    assert numbers_in("1. takes 7 of `9` guesses\n| 8 |\nabout 2.5 and 2²⁴.") == {"7", "2.5", "2²⁴"}


def test_every_number_in_the_prose_is_one_of_the_code() -> None:
    settings = bias_variance.Settings()
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    percent = "95"  # What Z95 stands for, asserted below.
    of_demo = {"-".join(map(str, demo_sizes())), str(settings.batch), str(settings.guesses)}
    known = {
        README: {
            project["requires-python"].removeprefix(">="),
            pinned["torch"],
            *of_demo,
            str(len(settings.estimators)),
            percent,
        },
        QUANTITIES: {percent, str(blocks.MOST_GROUPS), str(intervals.ENOUGH)},
        SCALE: {seconds_of_a_million(), "2²⁴"},
    }
    assert streamed.STREAMED_FROM == 2**24
    assert torch.special.ndtr(torch.tensor(intervals.Z95)).item() == pytest.approx(0.975)
    for text, numbers in known.items():
        found = numbers_in(text) - {"0", "1"}  # Values, not settings.
        # A number that was once quoted and is gone from the prose needs no entry above.
        assert found == numbers


def test_the_least_numbers_of_the_table_of_nan_are_those_of_the_code() -> None:
    reasons = {row[0]: row[1] for row in pages.table(QUANTITIES, "NaN where")}
    assert f"takes {intervals.LEAST} guesses" in reasons["`x_low` and `x_high`"]
    assert f"take {squared_norm.LEAST_GROUPS} groups" in reasons["a bias, a variance"]


PAGES = ["README.md", "CONTRIBUTING.md", *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_files_and_public_names_exist(page: str) -> None:
    text = pages.text_of(page)
    makefile = pages.text_of("Makefile")
    for target in {*re.findall(r"^make (\w+)", text, flags=re.MULTILINE), *re.findall(r"`make ([\w-]+)`", text)}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for name in re.findall(r"`((?:fganalysis|theory|studies|tests|docs)/[\w/]+\.py)`", text):
        assert "NAME" in name or (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!https?:|generated/)([^)#]+)[^)]*\)", text):
        assert ((ROOT / page).parent / link).exists(), link
    for dotted in set(re.findall(r"\bfga\.([A-Za-z_.]*\w)", text)):
        assert resolved(fga, dotted) is not None


def test_the_figure_of_the_readme_is_one() -> None:
    assert "](docs/bias_variance.png)" in README
    assert (ROOT / "docs" / "bias_variance.png").read_bytes().startswith(b"\x89PNG")


def resolved(module: object, dotted: str) -> object:
    for name in dotted.split("."):
        module = getattr(module, name)
    return module


def test_estimators_without_a_key_are_public_and_in_no_table() -> None:
    for name in ("Averaged", "Subsampled", "from_function"):
        assert f"`{name}`" in README
        assert hasattr(fga.estimators, name)
        assert name not in {cls.__name__ for cls in ESTIMATORS.values()}
