"""The README against the code: its Python runs as printed, and its numbers, names and paths are the code's."""

import importlib
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ESTIMATORS, ActivityPerturbation
from fganalysis.measuring import blocks
from fganalysis.results import schema
from fganalysis.statistics import intervals, squared_norm
from studies.bias_variance import __main__ as bias_variance

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
ROUNDING = 5e-3  # Three digits are printed: at most half of the last one, relative to 1.00.
HIDDEN_LAYERS = 3


def table(first_heading: str) -> list[list[str]]:
    """Cells of the table whose first column has this heading, a row a list, without the two head lines."""
    lines = README.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def names(first_heading: str) -> list[str]:
    return [row[0].strip("`") for row in table(first_heading)]


def test_every_python_block_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    own, advice, watching = BLOCKS
    names_of_all: dict[str, Any] = {"__name__": "readme"}
    torch.manual_seed(0)
    exec(compile(own, "README.md", "exec"), names_of_all)
    assert "downhill_only" in capsys.readouterr().out
    exec(compile(advice, "README.md", "exec"), names_of_all)
    assert len(advice.splitlines()) <= 10
    advised, watched = re.findall(r"^```text\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert without_numbers(capsys.readouterr().out) == without_numbers(advised)
    exec(compile(watching, "README.md", "exec"), names_of_all)
    assert without_numbers(capsys.readouterr().out) == without_numbers(watched)


def without_numbers(text: str) -> str:
    """Numbers, which differ in their last digits between machines, as #, and spaces as one."""
    return " ".join(re.sub(r"\d[\d.]*(?:e[-+]?\d+)?", "#", text).split())


def seconds_of_a_million() -> str:
    """What a million guesses by law take on a hundred million weights, as the page says."""
    page = (ROOT / "docs" / "results" / "throughput_by_law.md").read_text(encoding="utf-8")
    assert "on 10⁸ weights" in page
    (seconds,) = re.findall(r"1,000,000 guesses with all estimates and intervals take ([\d.]+) s", page)
    return str(seconds)


def test_the_cost_of_a_million_guesses_by_law_is_that_of_the_page() -> None:
    text = f"a million guesses on a network of a hundred million weights take {seconds_of_a_million()} s of one"
    assert text in " ".join(README.split())


def test_keeping_what_goes_downhill_halves_the_gradient() -> None:
    torch.manual_seed(0)
    found: dict = {}
    exec(compile(BLOCKS[0], "README.md", "exec"), found)
    frame = fga.summary(found["tree"], ["shrinkage"]).query("layer == 'all' and space == 'weight'")
    row = frame.set_index("estimator").loc["downhill_only"]
    # 5 standard errors; 1024 guesses see an error of about 0.2.
    assert abs(row["shrinkage"] - 0.5) <= 5 * row["shrinkage_se"]
    assert row["shrinkage_se"] < 0.06
    assert math.isnan(row["shrinkage_predicted"])


def test_estimators_are_those_of_the_table() -> None:
    assert {row[0].strip("`"): row[1].strip("`") for row in table("key")} == {
        key: cls.__name__ for key, cls in ESTIMATORS.items()
    }


def test_quantities_and_their_units_are_those_of_the_schema() -> None:
    known = schema.QUANTITIES | {"gradient_norm": schema.EXACT["gradient_norm"]}
    listed = {row[0].strip("`"): row[2].replace("²", "^2") for row in table("name")}
    assert listed == {name: variable.units for name, variable in known.items()}
    for name in (*schema.EXACT, "cosine_q05", "cosine_q95"):
        assert f"`{name}`" in README
        assert name in schema.variables()


def test_studies_are_those_of_the_folder_and_their_questions_open_their_docstrings() -> None:
    runnable = (ROOT / "studies").glob("*/__main__.py")
    assert sorted(names("study")) == sorted(path.parent.name for path in runnable), (
        "give the new study a row in the README's table: its name and the question that opens its docstring"
    )
    for name, question in table("study"):
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
    rows = table("noise")
    assert len(rows) == 4
    for noise, slope, *values in rows:
        for layers, value in zip(("joint", "separate"), values, strict=True):
            switches: dict[str, Any] = {"slope": slope.split()[0], "layers": layers}
            own = ActivityPerturbation(shared=noise == "shared", **switches)
            found = fga.predict(before_training, own).sel(space="weight", layer=before_training.layers[0])
            assert float(value) == pytest.approx(float(found["variance"] / found["gradient_norm"] ** 2), rel=ROUNDING)
            assert ("biased" in slope) == (float(found["relative_bias"]) > 1e-6)
    assert ActivityPerturbation() == ActivityPerturbation(shared=False, slope="example", layers="joint")


def numbers_in(prose: str) -> set[str]:
    """Numbers outside tables, inline code, links and the numbering of lists."""
    text = "\n".join(line for line in prose.splitlines() if not line.startswith("|"))
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|^\d+\. |MNIST-1D|\.(?=\s|$)", "", text, flags=re.MULTILINE)
    return set(re.findall(r"(?<!\w)\d[\d.]*(?:-\d+)*", text))


def test_a_stray_number_is_found() -> None:
    assert numbers_in("1. takes 7 of `9` guesses\n| 8 |\nabout 2.5.") == {"7", "2.5"}


def test_every_number_in_the_prose_is_one_of_the_code() -> None:
    settings = bias_variance.Settings()
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {
        project["requires-python"].removeprefix(">="),
        pinned["torch"],
        "-".join(map(str, demo_sizes())),
        str(settings.batch),
        str(settings.guesses),
        str(len(settings.estimators)),
        "95",  # Per cent: what Z95 stands for, asserted below.
        str(blocks.MOST_GROUPS),
        str(squared_norm.LEAST_GROUPS),
        str(intervals.LEAST),
        str(intervals.ENOUGH),
        seconds_of_a_million(),
    }
    assert torch.special.ndtr(torch.tensor(intervals.Z95)).item() == pytest.approx(0.975)
    found = numbers_in(PROSE)
    # 0 and 1 are values, not settings.
    assert found - known - {"0", "1"} == set()
    # A number that was once quoted and is gone from the prose needs no entry above.
    assert known - found == set()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make (\w+)|`make (\w+)`", README, flags=re.MULTILINE))))
def test_make_targets_exist(target: tuple[str, str]) -> None:
    assert re.search(rf"^{''.join(target)}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_files_named_exist() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", README)) | set(re.findall(r"\]\(([^)]*)\)", README))
    named = {name for name in named if "NAME" not in name and "FAMILY" not in name}
    assert "docs/bias_variance.png" in named
    for name in named:
        assert (ROOT / name.split("#")[0]).exists(), name
    assert (ROOT / "docs" / "bias_variance.png").read_bytes().startswith(b"\x89PNG")


def resolved(module: object, dotted: str) -> object:
    for name in dotted.split("."):
        module = getattr(module, name)
    return module


@pytest.mark.parametrize("dotted", sorted(set(re.findall(r"\bfga\.([A-Za-z_.]*\w)", README))))
def test_public_names_exist(dotted: str) -> None:
    assert resolved(fga, dotted) is not None


def test_estimators_without_a_key_are_public_and_in_no_table() -> None:
    for name in ("Averaged", "Subsampled", "from_function"):
        assert f"`{name}`" in README
        assert hasattr(fga.estimators, name)
        assert name not in {cls.__name__ for cls in ESTIMATORS.values()}
