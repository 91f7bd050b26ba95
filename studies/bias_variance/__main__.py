"""How biased and how noisy is every gradient guess, at the start, in the middle and at the end of training?

Trains the seed paper's MLP by backpropagation, freezes it at several steps, draws thousands of guesses of every
estimator on one batch, and puts the closed-form prediction beside each measured number.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import xarray as xr

import fganalysis as fga
from fganalysis.measuring.joining import join
from fganalysis.results import plotting
from fganalysis.results.tables import formatted
from fganalysis.training.checkpoints import load_checkpoint
from fganalysis.training.datasets import Dataset
from studies.kit import command_line, kept_cells
from studies.kit.command_line import DatasetName, Device

ESTIMATORS = ("backpropagation", "weight", "activity", "upstream", "orthogonal", "newton_schulz", "preconditioned")
TRAINING_BATCH = 512


@dataclass(frozen=True)
class Settings:
    """What is trained, when it is looked at, and how closely."""

    widths: tuple[int, ...] = (128,)
    """Widths of the three hidden layers; each width is a study of its own."""
    epochs: int = 60
    """Passes over the training set (8 steps each on MNIST-1D)."""
    steps: tuple[int, ...] = ()
    """Training steps to look at; when none are given, the first, the middle and the last."""
    estimators: tuple[str, ...] = ESTIMATORS
    """Keys of the estimators to diagnose."""
    guesses: int = 4096
    """Guesses drawn of each estimator at each step."""
    batch: int = 128
    """Examples in the batch that the gradients are those of."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the initial weights, the order of the examples and the guesses."""
    dataset: DatasetName = "mnist1d"
    """What the network is trained on."""
    device: Device = "cpu"
    """Where the guesses are made."""
    memory: int = 2**30
    """Bytes of working space for the sampler."""
    out: Path = Path("results/bias_variance")
    """Where results, figures and checkpoints go; steps that are finished there are not computed again."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"steps": 0, "guesses": 2}, optional=("steps",))
        for key in self.estimators:
            fga.estimators.resolve(key)


def main(settings: Settings) -> None:
    data = fga.datasets.load(settings.dataset)
    for width in settings.widths:
        for seed in settings.seeds:
            folder = settings.out / f"width_{width}" / f"seed_{seed}"
            tree = _study(settings, data, width, seed, folder)
            for space in fga.schema.SPACES:
                plotting.save(plotting.bias_variance(tree, space), folder / f"bias_variance_{space}.png")
                plotting.save(plotting.cosine(tree, space), folder / f"cosine_{space}.png")
            plotting.save(plotting.bias_variance(tree, "weight", ["all"]), folder / "overview.png")
            report(tree, folder)


def _study(settings: Settings, data: Dataset, width: int, seed: int, folder: Path) -> xr.DataTree:
    """One network, diagnosed at every step, a file a step; it is trained only where something is not finished."""
    batch = [array.to(settings.device) for array in data.batch(settings.batch)]
    inputs, classes = data.train_inputs.shape[1], int(data.train_targets.max()) + 1
    network = fga.networks.mlp([inputs, width, width, width, classes], bias=False, seed=seed)
    last = settings.epochs * -(-len(data.train_inputs) // TRAINING_BATCH)
    chosen = _chosen(settings)
    paths = {step: folder / f"step_{step:06d}.nc" for step in settings.steps or (0, last // 2, last)}
    finished = {step: tree for step, path in paths.items() if (tree := kept_cells.finished(path, chosen)) is not None}
    for step in finished:
        print(f"step {step} is finished: {paths[step]}")
    log = kept_cells.finished(folder / "training_log.nc", chosen)
    if log is not None and len(finished) == len(paths):
        _print_accuracy(log.to_dataset(), width, seed)
        return join([finished[step] for step in paths])
    run = fga.train(
        network,
        data,
        epochs=settings.epochs,
        batch_size=TRAINING_BATCH,
        checkpoints=list(paths),
        out=folder / "checkpoints",
        seed=seed,
        progress=True,
    )
    kept_cells.write(run.log, folder / "training_log.nc", chosen)
    _print_accuracy(run.log, width, seed)
    for step, path in paths.items():
        if step not in finished:
            load_checkpoint(run.checkpoints[step], network)
            finished[step] = _cell(settings, network, batch, step, seed, path)
    return join([finished[step] for step in paths])


def _print_accuracy(log: xr.Dataset, width: int, seed: int) -> None:
    accuracy = {name: float(log[name][-1]) for name in ("train_accuracy", "test_accuracy")}
    print(f"width {width}, seed {seed}: accuracy {accuracy['train_accuracy']:.3f} on the training set, ", end="")
    print(f"{accuracy['test_accuracy']:.3f} on the test set")


def _chosen(settings: Settings) -> dict[str, object]:
    """The settings that a result depends on and that its path does not say."""
    kept = {"guesses", "estimators", "batch", "dataset", "epochs", "device"}
    return {name: value for name, value in dataclasses.asdict(settings).items() if name in kept}


def _cell(
    settings: Settings, network: torch.nn.Module, batch: list[torch.Tensor], step: int, seed: int, path: Path
) -> xr.DataTree:
    """The diagnosis of one step, computed and written."""
    snapshot = fga.capture(network.to(settings.device), torch.nn.functional.cross_entropy, *batch, step=step)
    network.to("cpu")
    tree = fga.diagnose(
        snapshot, settings.estimators, settings.guesses, seed, memory=settings.memory, subspace=True, progress=True
    )
    kept_cells.write(tree, path, _chosen(settings))
    return tree


def report(tree: xr.DataTree, folder: Path) -> None:
    """The table on the terminal: every estimator over all layers, and how far measurement and theory are apart."""
    table = fga.summary(tree)
    table.to_csv(folder / "summary.csv", index=False)
    weight = table[(table["layer"] == fga.schema.ALL_LAYERS) & (table["space"] == "weight")].copy()
    for suffix in ("", "_se", "_predicted"):
        weight[f"relative_variance{suffix}"] = weight[f"variance{suffix}"] / weight["gradient_norm"] ** 2
    shown = formatted(weight, ["relative_bias", "relative_variance", "cosine", "efficiency", "descent_probability"])
    print("\nWeight space, all layers together: measured ± standard error | predicted (summary.csv has every layer).")
    print("±≤: the interval is wide, it may cover far more than 95 % (x_wide in the Dataset).")
    print("±≥: it may be too short, as what is averaged may have no variance (x_short).")
    print("relative_bias = bias/‖G‖ and relative_variance = total variance of one guess/‖G‖², G the exact gradient.")
    print(shown.drop(columns=["space", "layer"]).to_string(index=False))
    print("\nMeasured against predicted over all estimators, steps, layers and spaces: z = (measured − predicted)/SE")
    print(fga.agreement(tree).to_string(index=False))
    print(f"\nResults, figures and the whole table are in {folder}")


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
