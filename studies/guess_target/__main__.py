"""Does a guess from a local loss point along the gradient better than a random one, whatever the target and the space?

Fournier et al. (2023) estimate a gradient by projecting a target on a guess: target {global, local} × guess {the
gradient, an auxiliary head's, a frozen random head's, noise} × space {activation, weight}. Their code computes the
cosine of each with the loss's gradient and never logs it: here it is, with relative bias and efficiency, on an MLP on
MNIST-1D before, early in and after training by backpropagation, the heads trained along; then accuracies of networks
trained by the estimates. `--part resnet` is another page: heads behind the eight blocks of a narrow ResNet-18, as the
paper has them, before and after training.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xarray as xr

from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.guess_target import figures, resnet, resnet_figures, resnet_page
from studies.guess_target import page as guess_target_page
from studies.guess_target.cells import QUANTITIES, Network, Training, cell_name, measured, trained, ways
from studies.kit import command_line, pages, seeds
from studies.kit.digests import digests


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """The networks, the heads and how long they are trained."""

    part: Literal["mlp", "resnet"] = "mlp"
    """Which network, and so which page: guess_target.md or guess_target_resnet.md."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of weights, heads, order of the examples and noise; intervals are over them."""
    width: int = 128
    """Width of the three hidden layers; 40 inputs, 10 outputs, no biases."""
    mlp_width: int = 128
    """Width of an MLP head's three hidden layers; the paper's is 1024, on blocks of up to 512 channels."""
    cnn_channels: int = 16
    """Channels of a CNN head, which reads the units of an MLP's layer as a sequence."""
    rate: float = 1e-3
    """Learning rate of Adam, for networks and heads."""
    epochs: tuple[int, ...] = (0, 5, 40)
    """Epochs of backpropagation (8 steps of 512 examples each) after which the guesses are measured."""
    batch: int = 256
    """Examples in the batch that gradients are those of."""
    guesses: int = 256
    """Random guesses drawn for each cell."""
    training_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the networks that are trained by the estimates."""
    training_epochs: int = 40
    """Epochs of that."""
    resnet_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the ResNets, their heads and noise; intervals are over them."""
    resnet_widths: tuple[int, ...] = (8, 16, 32, 64)
    """Channels of the ResNet's four stages; the paper's are 64, 128, 256 and 512."""
    resnet_rate: float = 3e-3
    """Learning rate of Adam for the ResNet and its heads."""
    resnet_epochs: int = 3
    """Epochs of backpropagation before the second look at the ResNet."""
    resnet_head_steps: int = 60
    """Steps of Adam for the heads, while the ResNet stays as it is."""
    resnet_batch: int = 64
    """Examples in the batch that the ResNet's gradients are those of."""
    resnet_guesses: int = 32
    """Random guesses drawn for each cell of the ResNet."""
    out: Path = Path("results/guess_target")
    """Where results go, a file a network; what is finished there is not computed again."""
    page: Path | None = None
    """Where the page and its figures go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"epochs": 0})
        for name in ("seeds", "training_seeds", "resnet_seeds"):
            if len(getattr(self, name)) < 2:
                raise ValueError(
                    f"{name} must be at least 2, as intervals are over them, got {len(getattr(self, name))}"
                )
        if self.guesses < 64:
            raise ValueError(f"guesses must be at least 64, which a bias is estimated from, got {self.guesses}")
        if max(self.epochs, default=0) < 1:
            raise ValueError(f"epochs must hold one of at least 1, got {self.epochs}")
        if len(self.resnet_widths) != len(resnet.STAGES):
            raise ValueError(f"resnet_widths must be of {len(resnet.STAGES)} stages, got {self.resnet_widths}")


def main(settings: Settings) -> xr.DataTree:
    return _resnet(settings) if settings.part == "resnet" else _mlp(settings)


def _resnet(settings: Settings) -> xr.DataTree:
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    parts = {seed: results.dataset(_resnet_name(seed)) for seed in settings.resnet_seeds}
    dataset = resnet.described(seeds.joined(parts, _resnet_settings(settings, settings.resnet_seeds[-1])))
    tree = xr.DataTree.from_dict({"measured": dataset})
    name = "guess_target_resnet"
    pages.publish(name, tree, resnet_page.page(dataset), resnet_figures.figures(dataset), settings)
    return tree


def _mlp(settings: Settings) -> xr.DataTree:
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    found = {seed: results.dataset(cell_name(_network(settings, seed))) for seed in settings.seeds}
    by_way = {
        way: [results.dataset(cell_name(_training(settings, way, seed))) for seed in settings.training_seeds]
        for way in _ways(settings)
    }
    tree = xr.DataTree.from_dict({"measured": _measured(settings, found), "trained": _trained(settings, by_way)})
    pages.publish("guess_target", tree, guess_target_page.page(tree), figures.figures(tree), settings)
    return tree


def cells(settings: Settings) -> list[Cell]:
    """Every network that is measured, and every training by an estimate; or the ResNets."""
    if settings.part == "resnet":
        data = digests("digits")
        return [
            Cell(_resnet_name(seed), resnet.measured, {"of": _resnet_settings(settings, seed)}, data, resumes=True)
            for seed in settings.resnet_seeds
        ]
    data, found = digests("mnist1d"), []
    for network in (_network(settings, seed) for seed in settings.seeds):
        found.append(Cell(cell_name(network), measured, {"of": network}, data, resumes=True))
    for way, seed in itertools.product(_ways(settings), settings.training_seeds):
        training = _training(settings, way, seed)
        found.append(Cell(cell_name(training), trained, {"of": training}, data, resumes=True))
    return found


def _ways(settings: Settings) -> list[str]:
    return list(ways(_training(settings, "", settings.training_seeds[0])))


def _resnet_name(seed: int) -> str:
    return f"cells/resnet_seed_{seed}"


def _resnet_settings(settings: Settings, seed: int) -> resnet.ResNet:
    return resnet.ResNet(
        seed=seed,
        widths=settings.resnet_widths,
        mlp_width=settings.mlp_width,
        cnn_channels=settings.cnn_channels,
        rate=settings.resnet_rate,
        epochs=settings.resnet_epochs,
        head_steps=settings.resnet_head_steps,
        batch=settings.resnet_batch,
        guesses=settings.resnet_guesses,
        device=settings.device,
    )


def _network(settings: Settings, seed: int) -> Network:
    return Network(
        seed=seed,
        width=settings.width,
        mlp_width=settings.mlp_width,
        cnn_channels=settings.cnn_channels,
        rate=settings.rate,
        epochs=settings.epochs,
        batch=settings.batch,
        guesses=settings.guesses,
        device=settings.device,
    )


def _training(settings: Settings, way: str, seed: int) -> Training:
    return Training(
        way=way,
        seed=seed,
        width=settings.width,
        mlp_width=settings.mlp_width,
        rate=settings.rate,
        epochs=settings.training_epochs,
        device=settings.device,
    )


def _measured(settings: Settings, cells: dict[int, xr.Dataset]) -> xr.Dataset:
    dataset = xr.concat(list(cells.values()), dim="seed", data_vars="all", combine_attrs="drop")
    dataset = dataset.assign_coords(seed=list(cells)).assign(
        isotropic_cosine=dataset["isotropic_cosine"].isel(seed=0, step=0)
    )
    names = QUANTITIES | {
        "isotropic_cosine": "predicted: mean absolute cosine of an isotropic direction with a weight gradient",
        "accuracy": "accuracy on the training set of the network that is measured",
        "loss": "loss on the training set of the network that is measured",
    }
    for name, array in dataset.data_vars.items():
        array.attrs = {"units": "loss" if name == "loss" else "1", "long_name": names[str(name)]}
    dataset.attrs = {
        name: getattr(settings, name) for name in ("width", "mlp_width", "cnn_channels", "rate", "batch", "guesses")
    } | {"epochs": list(settings.epochs)}
    return dataset


def _trained(settings: Settings, by_way: dict[str, list[xr.Dataset]]) -> xr.Dataset:
    rows = [xr.concat(cells, dim="seed", data_vars="all", combine_attrs="drop") for cells in by_way.values()]
    dataset = xr.concat(rows, dim="way", data_vars="all", combine_attrs="drop", join="outer")
    dataset = dataset.assign_coords(way=list(by_way), seed=list(settings.training_seeds))
    for part in ("train", "test"):
        dataset[f"{part}_accuracy"].attrs = {"units": "1", "long_name": f"accuracy on the {part} set"}
    dataset.attrs = {"epochs": settings.training_epochs, "rate": settings.rate}
    return dataset


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
