"""A result with names that would break a page, its page, and what a page says to a parser of HTML."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot

EVIL = '_</td><img src="http://example.org/x">$a$ & {{ 7 * 7 }} and so on until no legend holds it'
FAILED = "<b>out of luck</b>"
LAYER = "<script>bad()</script>_$x$"
VOID = ("meta", "br", "link", "path", "use", "rect", "image", "circle", "line", "polygon")


class Network(torch.nn.Module):
    """Two layers, of which the second has a name that a page must escape."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 6)
        self.add_module(LAYER, torch.nn.Linear(6, 3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return getattr(self, LAYER)(torch.tanh(self.first(inputs)))


def snapshot(step: int = 0) -> Snapshot:
    torch.manual_seed(step)
    network = Network()
    inputs, targets = torch.randn(8, 4), torch.randint(0, 3, (8,))
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets, step=step)


def evil(network, loss_fn, inputs, targets, generator):  # type: ignore[no-untyped-def]
    return {name: torch.randn(weight.shape, generator=generator) for name, weight in network.named_parameters()}


def failing(network, loss_fn, inputs, targets, generator):  # type: ignore[no-untyped-def]
    raise RuntimeError(FAILED)


evil.__name__ = EVIL


@cache
def tree() -> xr.DataTree:
    own = [fga.estimators.from_function(function) for function in (evil, failing)]
    return fga.diagnose([snapshot(step) for step in (0, 7)], ["activity", *own], n_guesses=64)


@cache
def page() -> str:
    return page_of(tree())


def page_of(result: object) -> str:
    with TemporaryDirectory() as folder:
        return fga.report(result, Path(folder) / "page.html").read_text(encoding="utf-8")  # type: ignore[arg-type]


@dataclass
class Parsed(HTMLParser):
    """Tables of a page as lists of rows of texts, all tags with their attributes, and what is not closed."""

    text: str
    tables: list[list[list[str]]] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "br":
            self.handle_data("\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data
