"""How fast is a guess? In steps of backpropagation; on MLPs also against drawing its noise, jvp and vmap(jvp).

Everything is measured side by side in one run: in each round every contender is timed once, in turn, and the medians of
the rounds and the median of the round-by-round ratios are reported.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import xarray as xr

from fganalysis.measuring.blocks import MOST_GROUPS
from fganalysis.results import store
from fganalysis.results.cells import Results, run_cells
from fganalysis.results.identity import Cell
from studies.kit import command_line, pages
from studies.kit.command_line import AUTO, Device
from studies.kit.machine import machine
from studies.throughput import by_law, figures, monitor, scaling, steps
from studies.throughput import page as throughput_page
from studies.throughput.cells import (
    timed_budgets,
    timed_by_law,
    timed_directions,
    timed_guesses,
    timed_monitor,
    timed_scaling,
    timed_steps,
    timed_whole,
)

KEYS = ("activity", "weight")
TITLES = {"mlp": "an MLP", "resnet": "a ResNet", "gpt": "a GPT"}


@dataclass(frozen=True)
class Settings(command_line.Logged):
    """Time per guess over all layers, with every scalar metric."""

    network: steps.Network = "mlp"
    """What is timed: MLPs of three hidden layers, a ResNet or a GPT."""
    widths: tuple[int, ...] = (128, 512, 2048)
    """Widths of the hidden layers of the MLPs; the other settings of MLPs are batch, seconds and svd_width."""
    batch: int = 128
    """Examples in the batch."""
    rounds: int = 5
    """Interleaved repeats; medians are reported."""
    seconds: float = 3.0
    """At least how long the sampler runs in one round, so that it draws thousands of guesses; the others a third."""
    svd_width: int = 512
    """Width at which the directions of W̃⊥ (k=10) are timed against LAPACK's SVD, and a guess against a step."""
    device: Device = AUTO
    """Where it is measured: auto (a GPU where there is one), cpu, cuda or cuda:N."""
    memory: int = 2**30
    """Bytes of working space for the sampler."""
    blocks: int = MOST_GROUPS
    """Blocks in the shorter of two runs, whose difference gives the time of a guess; with fewer, groups would grow."""
    by_law: bool = False
    """Times guesses that are drawn by their law instead, over the number of weights."""
    weights: tuple[int, ...] = (10**4, 10**5, 10**6, 10**7, 10**8)
    """Weights of the networks of which guesses are drawn by their law."""
    guesses: int = 10**6
    """Guesses by their law in the run that is timed with all its estimates; a twentieth to time a guess."""
    scaling: bool = False
    """Times a study of one worker against several instead."""
    scaling_workers: tuple[int, ...] = (1, 2)
    """Numbers of workers; with the first the others are compared."""
    scaling_seconds: float = 90.0
    """About how long that study takes with one worker."""
    monitor: bool = False
    """Times a monitor in the training of a GPT and a ResNet instead."""
    small: bool = False
    """Another ResNet or GPT, as small as can be: for a try."""
    out: Path = Path("results/throughput")
    """Where results go, a file for each part; what is finished there is not timed again."""
    page: Path | None = None
    """Where throughput.md and its figure go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self)


def main(settings: Settings) -> xr.Dataset:
    results = run_cells(cells(settings), settings.out)
    if settings.by_law:
        return _by_law(settings, results)
    if settings.scaling:
        return _scaling(settings, results)
    if settings.monitor:
        return _monitor(settings, results)
    dataset = results.dataset(_name(settings.network))
    words, dataset.attrs = dataset.attrs["words"], {}
    drawn = {"steps": figures.steps_figure}
    name = f"throughput_{settings.network}"
    if settings.network == "mlp":
        name, drawn = "throughput", {"ratio": figures.figure}
        dataset = dataset.merge(_against_others(settings, results))
    dataset.attrs = {
        "network": settings.network,
        "of": TITLES[settings.network],
        "words": words,
        "device": _device_name(settings.device),
        "threads": torch.get_num_threads(),
        "batch": settings.batch,
        "svd_width": settings.svd_width,
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "torch": str(torch.__version__),
    }
    store.write(dataset, settings.out / f"{name}.nc")
    text = throughput_page.page(dataset)
    pages.write(name, text, {title: draw(dataset) for title, draw in drawn.items()}, settings.out, settings.page)
    print(text)
    return dataset


def _by_law(settings: Settings, results: Results) -> xr.Dataset:
    """The time of a guess drawn by its law, which has a page of its own."""
    dataset = results.dataset(_name("by_law")).merge(results.dataset(_name("by_law_whole")))
    dataset.attrs = {"guesses": settings.guesses, "each": _each(settings), "rounds": settings.rounds}
    store.write(dataset, settings.out / "throughput_by_law.nc")
    text = pages.render("throughput", by_law.values(dataset), "by_law.md.j2")
    drawn = {"times": figures.by_law_figure(dataset)}
    pages.write("throughput_by_law", text, drawn, settings.out, settings.page)
    print(text)
    return dataset


def _scaling(settings: Settings, results: Results) -> xr.Dataset:
    """The time of a study over its workers, which has a page of its own."""
    dataset = results.dataset(_name("scaling"))
    kept = {name: dataset.attrs[name] for name in ("cells", "cell_guesses")}
    dataset.attrs = kept | {"rounds": settings.rounds, "processors": os.cpu_count() or 1}
    store.write(dataset, settings.out / "throughput_scaling.nc")
    text = pages.render("throughput", scaling.values(dataset), "scaling.md.j2")
    pages.write("throughput_scaling", text, {}, settings.out, settings.page)
    print(text)
    return dataset


def _monitor(settings: Settings, results: Results) -> xr.Dataset:
    """The time of a monitor's measurement, which has a page of its own."""
    dataset = results.dataset(_name("monitor")).merge(results.dataset(_name("monitor_budgets")).drop_attrs())
    words = {name: value for name, value in dataset.attrs.items() if str(name).startswith("words_")}
    dataset.attrs = words | {
        "device": _device_name(settings.device),
        "rounds": settings.rounds,
        "torch": str(torch.__version__),
    }
    store.write(dataset, settings.out / "throughput_monitor.nc")
    text = pages.render("throughput", monitor.values(dataset), "monitor.md.j2")
    pages.write("throughput_monitor", text, {}, settings.out, settings.page)
    print(text)
    return dataset


def cells(settings: Settings) -> list[Cell]:
    """Steps beside guesses; of MLPs also the contenders. Times depend on the machine and are measured in turn."""
    on: dict[str, object] = {"threads": torch.get_num_threads(), "machine": machine(settings.device)}
    if settings.by_law:  # Which takes the CPU alone.
        on |= {"rounds": settings.rounds, "machine": machine()}
        each = {"weights": settings.weights, "n_guesses": _each(settings)}
        whole = {"n_weights": settings.weights[-1], "n_guesses": settings.guesses}
        return [
            Cell(_name("by_law"), timed_by_law, on | each, threads=None),
            Cell(_name("by_law_whole"), timed_whole, on | whole, threads=None),
        ]
    if settings.scaling:
        on |= {"rounds": settings.rounds, "machine": machine()}
        of = {"n_workers": settings.scaling_workers, "seconds": settings.scaling_seconds}
        return [Cell(_name("scaling"), timed_scaling, on | of, threads=None)]
    if settings.monitor:
        of = on | command_line.depends_on(settings, "device", "small")
        rounds = {"rounds": settings.rounds}
        return [
            Cell(_name("monitor"), timed_monitor, of | rounds, threads=None),
            Cell(_name("monitor_budgets"), timed_budgets, of, threads=None),
        ]
    here = on | command_line.depends_on(settings, "device", "memory", "rounds", "batch")
    own = command_line.depends_on(settings, "network", "small", "blocks") | {"width": settings.svd_width}
    found = [Cell(_name(settings.network), timed_steps, here | own, threads=None)]
    if settings.network == "mlp":
        here |= {"seconds": settings.seconds}
        for width, key in itertools.product(settings.widths, KEYS):
            of = {"width": width, "estimator": key}
            found.append(Cell(_name(f"{width}_{key}"), timed_guesses, here | of, threads=None))
        found.append(Cell(_name("directions"), timed_directions, here | {"width": settings.svd_width}, threads=None))
    return found


def _each(settings: Settings) -> int:
    """Guesses by their law to time one of them."""
    return max(2, settings.guesses // 20)


def _name(what: str) -> str:
    return f"cells/{what}"


def _against_others(settings: Settings, results: Results) -> xr.Dataset:
    """Of MLPs: the sampler beside what it is compared with, and the directions of W̃⊥."""
    parts = [
        results.dataset(_name(f"{width}_{key}")).drop_attrs().expand_dims(width=[width], estimator=[key])
        for width in settings.widths
        for key in KEYS
    ]
    dataset = xr.combine_by_coords(parts)
    assert isinstance(dataset, xr.Dataset)
    dataset["seconds_per_guess"].attrs = {"units": "s", "long_name": "wall time per guess"}
    dataset["directions_seconds"] = results.dataset(_name("directions"))["directions_seconds"]
    return dataset


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device != "cpu" else "cpu"


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
