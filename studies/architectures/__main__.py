"""How good is each guess on MLPs, conv nets, ResNets, mixers and GPTs, and does the orthogonal guess keep its lead?

Every architecture in three sizes (base, twice as wide, twice as deep), at initialisation and after a short training by
backpropagation: cosine, efficiency, variance and squared bias of every guess, layer by layer, in both spaces, beside
what `fganalysis.predict` says where a closed form is known. The orthogonal guess is that of Wang et al. (2025), who
measured it on MLPs.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from fganalysis.arguments import check_names
from fganalysis.results import schema
from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.architectures import figures
from studies.architectures import page as architectures_page
from studies.architectures.cells import PART, QUANTITIES, cell
from studies.architectures.networks import ARCHITECTURES, DEFAULT_TEXT, SIZES, data_of
from studies.kit import command_line, pages
from studies.kit.long_names import described

KINDS = {"_predicted": "predicted: ", "_inside": "1 if the 95 % interval holds the prediction, 0 if not: "}
OTHERS = {
    "loss": ("loss on the training set", "loss"),
    "steps": ("steps of training", "step"),
    "parameters": ("trainable parameters", "1"),
    "layer_name": ("module of a layer; empty where the network has fewer", "1"),
}
CHOSEN = ("guesses", "batch", "steps", "learning_rate")
REASONS = ("not_measured", "not_predicted")


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """Which networks, and how closely they are looked at."""

    architectures: tuple[str, ...] = tuple(ARCHITECTURES)
    """Which architectures, by their names in studies/architectures/networks.py."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, batch, order of training and noise."""
    guesses: int = 512
    """Guesses of each estimator, network and moment."""
    batch: int = 8
    """Examples in the batch that the gradients are those of; a multiple of 4."""
    steps: int = 300
    """Steps of training by AdamW on batches of 32, rounded to whole passes over the training set."""
    learning_rate: float = 1e-3
    """Of the training."""
    text: Path = DEFAULT_TEXT
    """The file whose bytes the GPT predicts."""
    out: Path = Path("results/architectures")
    """Where cells go, a file for each network and seed; what is finished there is not computed again."""
    page: Path | None = None
    """Where architectures.md, its figures and its Dataset go, if not to `out`; docs/results has the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"guesses": 32})
        check_names("architectures", self.architectures, ARCHITECTURES)
        if len(self.seeds) < 2:
            raise ValueError(f"seeds must be at least 2, as intervals are over them, got {len(self.seeds)}")
        if self.batch % PART:
            raise ValueError(f"batch must be a multiple of {PART}, the minibatch's part of it, got {self.batch}")


def main(settings: Settings) -> xr.Dataset:
    """Computes what is missing, collects it, and writes the page and its figures."""
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    wanted = itertools.product(settings.architectures, SIZES, settings.seeds)
    found = {place: results.dataset(_name(*place)) for place in wanted}
    chosen = command_line.depends_on(settings, *CHOSEN)
    dataset = collected(found)
    dataset.attrs |= chosen
    text, drawn = architectures_page.page(dataset), figures.figures(dataset)
    pages.publish("architectures", dataset, text, drawn, settings, with_result=True)
    return dataset


def cells(settings: Settings) -> list[Cell]:
    """Every network, from every seed."""
    chosen, found = command_line.depends_on(settings, *CHOSEN, "device"), []
    for architecture, size, seed in itertools.product(settings.architectures, SIZES, settings.seeds):
        own = {"architecture": architecture, "size": size, "seed": seed} | chosen
        kind = ARCHITECTURES[architecture].data
        data, places = {kind: data_of(architecture, settings.text).digest()}, {"text": settings.text}
        found.append(Cell(_name(architecture, size, seed), cell, own, data, places, resumes=True))
    return found


def _name(architecture: str, size: str, seed: int) -> str:
    return f"{architecture.replace(' ', '_')}/{size}_seed_{seed}"


def collected(cells: dict[tuple[str, str, int], xr.Dataset]) -> xr.Dataset:
    """All cells over (architecture, size, seed, trained, guess_kind, space, layer), in single precision.

    ``layer`` is "all", or the number of a layer, from 1 in the order of the forward pass; ``layer_name`` has its name.
    The reasons are JSON objects from architecture to guess to sentence, those of an architecture's first network.
    """
    architectures, sizes, seeds = (list(dict.fromkeys(key[i] for key in cells)) for i in range(3))
    most = max(part.sizes[schema.LAYER] for part in cells.values()) - 1
    numbers = [str(number + 1) for number in range(most)]
    names = np.full((len(architectures), len(sizes), most), "", dtype=object)
    reasons: dict[str, dict[str, dict[str, str]]] = {name: {} for name in REASONS}
    parts = []
    for (architecture, size, seed), part in cells.items():
        layers = [str(layer) for layer in part[schema.LAYER].values if layer != schema.ALL_LAYERS]
        names[architectures.index(architecture), sizes.index(size), : len(layers)] = layers
        for name in REASONS:
            for guess, sentence in json.loads(part.attrs[name]).items():
                reasons[name].setdefault(architecture, {}).setdefault(guess, sentence)
        numbered = part.assign_coords({schema.LAYER: [*numbers[: len(layers)], schema.ALL_LAYERS]})
        numbered = numbered.reindex({schema.LAYER: [*numbers, schema.ALL_LAYERS]}).astype(np.float32)
        place = {"architecture": [architecture], "size": [size], "seed": [seed]}
        parts.append(numbered.expand_dims(place).drop_attrs())
    dataset = xr.combine_by_coords(parts, combine_attrs="drop")
    assert isinstance(dataset, xr.Dataset)
    dataset = dataset.sel(
        architecture=architectures,
        size=sizes,
        seed=seeds,
        trained=parts[0]["trained"],
        guess_kind=parts[0]["guess_kind"],
    )
    dataset["layer_name"] = (("architecture", "size", "number"), names.astype(str))
    dataset.attrs = {name: json.dumps(found) for name, found in reasons.items()}
    return described(dataset, {name: (words, "1") for name, words in QUANTITIES.items()} | OTHERS, KINDS)


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
