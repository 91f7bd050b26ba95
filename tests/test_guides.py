"""The pages of the site that teach: their code runs as printed, and says what the pages say."""

from __future__ import annotations

import contextlib
import re
from typing import Any
from unittest import SkipTest

import pytest

from tests import pages
from tests.pages import without_numbers

Capsys, Monkeypatch = pytest.CaptureFixture[str], pytest.MonkeyPatch


def run_page(name: str, capsys: Capsys, monkeypatch: Monkeypatch) -> tuple[dict[str, Any], list[str]]:
    return pages.run(pages.code_of(pages.text_of(f"docs/{name}.md")), capsys, monkeypatch)


def numbers_of(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+(?:e[-+]?\d+)?", printed)]


def test_quantities(capsys: Capsys, monkeypatch: Monkeypatch) -> None:
    _, (one_number, switches) = run_page("quantities", capsys, monkeypatch)
    shown = dict(re.findall(r"^(\w+) +([\d.]+)", one_number, flags=re.MULTILINE))
    assert float(shown["variance_low"]) < float(shown["predicted"]) < float(shown["variance_high"])
    joint, separate = numbers_of(switches)
    assert joint > 3 * separate  # "change a variance"


def test_your_own_estimator(capsys: Capsys, monkeypatch: Monkeypatch) -> None:
    names, printed = run_page("your_own_estimator", capsys, monkeypatch)
    as_function, as_dataclass, sketch, agreement, exact, matched, _ = printed
    _, low, high, _ = numbers_of(as_function)
    assert low < 0.5 < high and high - low < 1
    assert float(as_dataclass) == pytest.approx(0.5, abs=0.2)
    assert sketch.startswith("RandomInputs is unbiased to within the tolerance")
    assert "shrinkage" in agreement and "variance" in agreement
    enumerated, predicted = numbers_of(exact)
    assert enumerated == pytest.approx(predicted, rel=1e-12)
    assert "all within their margins" in matched
    for case in names["test_my_estimators"].pytestmark[0].args[1]:
        if not case.marks:  # Those that are expected to fail have a mark.
            with contextlib.suppress(SkipTest):
                names["test_my_estimators"](*case.values)


@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor.*")
def test_your_own_network(capsys: Capsys, monkeypatch: Monkeypatch) -> None:
    names, (taps, _, refusal) = run_page("your_own_network", capsys, monkeypatch)
    assert "embed (30, 8)" in taps and "the last: untapped" in taps
    assert names["snapshot"].untapped_parameters == ("token",)
    assert set(names["adapted"].layers) == {"blocks.0", "blocks.1"}
    assert refusal.startswith("'1' is dropout in training mode")


def test_steps_and_costs(capsys: Capsys, monkeypatch: Monkeypatch) -> None:
    names, (_, advice, _, _, epsilons, losses, own_loop) = run_page("steps_and_costs", capsys, monkeypatch)
    (shown,) = pages.printed_in(pages.text_of("docs/steps_and_costs.md"))
    assert without_numbers(advice) == without_numbers(shown)
    assert 0 < names["progress"]["best_step"].sel(averaged=1, estimator="weight") < 1
    assert "central" in epsilons and "loss" in losses
    first, _, last = map(float, own_loop.split())
    assert last < first


def test_any_scale(capsys: Capsys, monkeypatch: Monkeypatch) -> None:
    names, (_, merged, _) = run_page("any_scale", capsys, monkeypatch)
    assert names["dataset"].attrs["by_law"] == 1
    assert merged.strip() == "True"
    stream = names["stream"]
    assert stream.n_examples == 8 and stream.remainder < 1e-3


# Clusters that no test has.
NOT_RUN = {"many_machines"}
# Each in a test file of its own.
RUN_ELSEWHERE = {"is_it_unbiased", "monitoring", "recipes", "your_own_gradients"}


def test_every_page_with_code_is_run() -> None:
    with_code = {path.stem for path in pages.ROOT.glob("docs/*.md") if pages.code_of(path.read_text(encoding="utf-8"))}
    here = {name.removeprefix("test_") for name in globals()}
    assert with_code - here - RUN_ELSEWHERE == NOT_RUN
