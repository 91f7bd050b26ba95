"""What all pages and figures of the studies share: templates that name what they show, and a style."""

from __future__ import annotations

from pathlib import Path

import jinja2
import numpy as np
import pytest

from fganalysis.results import palette
from studies.kit import figures, pages
from studies.kit.seeds import Interval


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pages, "STUDIES", tmp_path)
    (tmp_path / "made_up").mkdir()
    return tmp_path / "made_up" / "page.md.j2"


def test_paragraphs_and_items_are_joined_and_tables_are_not(study: Path) -> None:
    study.write_text(
        "# Title\n\nOne\nparagraph\n{% if missing %}\nno\n{% endif %}\nhere.\n\n\n- an item\n  goes on\n- another\n\n"
        "{{ rows | table(['a', 'b']) }}\n{{ gain | number }}, {{ 0.5 | number('.2f') }} and {{ 0.5 | percent }} < 1\n",
        encoding="utf-8",
    )
    text = pages.render("made_up", {"missing": False, "rows": [["1", "2"]], "gain": Interval(0.5, 0.1)})
    assert text == (
        "# Title\n\nOne paragraph here.\n\n- an item goes on\n- another\n\n"
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n0.50 ± 0.10, 0.50 and 50 % < 1\n"
    )


def test_a_name_that_has_no_value_is_an_error(study: Path) -> None:
    study.write_text("{{ unheard_of }}", encoding="utf-8")
    with pytest.raises(jinja2.UndefinedError, match="unheard_of"):
        pages.render("made_up", {})


def test_the_studies_draw_estimators_in_the_colours_of_the_package() -> None:
    assert figures.colour("orthogonal, k = 10") == palette.colour("orthogonal")
    assert figures.marker("weight") == palette.marker("weight")


def test_an_interval_of_logarithms_is_one_of_geometric_means() -> None:
    logs = np.log(np.array([[1.0, 2.0], [4.0, 8.0]]))
    low, middle, high = figures.geometric(logs)
    np.testing.assert_allclose(middle, [2, 4])
    np.testing.assert_allclose(low * high, middle**2)
