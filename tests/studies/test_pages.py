"""What all pages and figures of the studies share: templates that name what they show, and a style."""

from __future__ import annotations

from pathlib import Path

import jinja2
import numpy as np
import pytest
from matplotlib.figure import Figure

from fganalysis.results import palette, plotting
from studies.kit import figures, pages
from studies.kit.direct_labels import label_points
from studies.kit.seeds import Interval
from tests import legible

COMMITTED = Path(__file__).resolve().parents[2] / "docs"


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


def test_committed_figures_are_no_wider_than_a_page_shows_legibly() -> None:
    """A PNG has its width in its header."""
    paths = [COMMITTED / "bias_variance.png", *sorted((COMMITTED / "results").glob("*.png"))]
    assert len(paths) > 40
    widths = {path.name: int.from_bytes(path.read_bytes()[16:20], "big") for path in paths}
    too_wide = {name: width for name, width in widths.items() if width > plotting.DPI * figures.PAGE_WIDTH}
    assert not too_wide


def faulty(fault: str) -> Figure:
    """A figure that keeps what `legible` asks for, but for one fault."""
    with figures.sheet():
        figure, grid = figures.panels(1, 1, (4.0, 3.0))
        axes = grid[0, 0]
        axes.plot([0, 1], [0, 1], label="a line")
        axes.set(xlabel="width (units)", ylabel="cosine")
        if fault == "internal name":
            axes.set_title("relative_bias")
        elif fault == "unit of one":
            axes.set_ylabel("cosine [1]")
        elif fault == "call":
            axes.set_title("orthogonal(k=2)")
        elif fault == "covered text":
            axes.text(0.5, 0.5, "first")
            axes.text(0.52, 0.5, "second")
        elif fault == "ticks":
            axes.set_xticks([0, 0.01], ["0", "10⁰"])
        elif fault == "covered panel":
            axes.legend()
        elif fault == "no name":
            axes.set_ylabel("")
        elif fault == "small":
            axes.set_title("small", fontsize=5)
        elif fault == "outside":
            figure.text(0.98, 0.5, "leaves the figure")
        elif fault == "one tick":
            axes.set(yscale="log", ylim=(2, 80))
            figures.decades(axes.yaxis)
        figures.legend(figure, [figures.key("a line", line="-")], "above")
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize(
    ("fault", "found"),
    {
        "internal name": "internal name",
        "unit of one": "internal name",
        "call": "internal name",
        "covered text": "covers 'second'",
        "ticks": "covers",
        "covered panel": "a legend covers the panel",
        "no name": "has numbers and no name",
        "small": "too small",
        "outside": "leaves the figure",
        "one tick": "fewer than two numbers",
    }.items(),
)
def test_a_figure_that_cannot_be_read_is_found(fault: str, found: str) -> None:
    (sentence,) = legible.faults(faulty(fault))
    assert found in sentence


def test_a_figure_that_can_be_read_has_no_faults() -> None:
    assert not legible.faults(faulty(""))


def test_names_stand_beside_their_points_and_cover_nothing() -> None:
    with figures.sheet():
        figure, grid = figures.panels(1, 1, (5.0, 4.0))
        axes = grid[0, 0]
        places = {f"estimator {number}": (1.0 + 0.02 * number, 1.0) for number in range(3)} | {"far": (4.0, 3.0)}
        for x, y in places.values():
            axes.errorbar(x, y, yerr=0.2, marker="o")
        axes.set(xlim=(0, 6), ylim=(0, 4), xlabel="noise", ylabel="bias")
        label_points(axes, places, [palette.CATEGORIES[0]] * len(places))
    figure.canvas.draw()
    assert [text.get_text() for text in axes.texts] == list(places)
    assert not legible.faults(figure)


def test_powers_and_quantities_are_written_as_a_reader_writes_them() -> None:
    assert figures.scale(1e-8) == "10⁻⁸" and figures.scale(0.0625, 2) == "2⁻⁴" and figures.scale(0.3) == "0.3"
    assert figures.quantity("relative_bias") == "relative bias"
    assert figures.quantity("best_epsilon, one-sided") == "best ε, one-sided"
