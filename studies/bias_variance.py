"""How biased and how noisy is every gradient guess, at the start, in the middle and at the end of training?

Trains the seed paper's MLP on MNIST-1D by backpropagation, freezes it at several steps, draws thousands of guesses of
every estimator on one batch, and puts the closed-form prediction beside each measured number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
import xarray as xr
from tqdm import tqdm

import fganalysis as fga
from fganalysis import plotting, store
from fganalysis.diagnosis import join
from fganalysis.snapshot import Snapshot
from fganalysis.summary import formatted
from fganalysis.training import load_checkpoint

ESTIMATORS = ("backpropagation", "weight", "activity", "upstream", "orthogonal", "newton_schulz", "preconditioned")


@dataclass(frozen=True)
class Settings:
    """What is trained, when it is looked at, and how closely."""

    width: int = 128
    """Width of the three hidden layers."""
    epochs: int = 60
    """Passes over the training set (8 steps each at the default batch)."""
    steps: tuple[int, ...] = ()
    """Training steps to look at; none given: the first, the middle and the last."""
    estimators: tuple[str, ...] = ESTIMATORS
    """Keys of the estimators to diagnose."""
    guesses: int = 4096
    """Guesses drawn of each estimator at each step."""
    batch: int = 128
    """Examples in the batch that the gradients are those of."""
    seed: int = 0
    """Seed of the initial weights, the order of the examples and the guesses."""
    dataset: str = "mnist1d"
    """mnist1d, digits, fashion_mnist, mnist or cifar10."""
    device: str = "cpu"
    """cpu or cuda."""
    out: Path = Path("results/bias_variance")
    """Where results, figures and checkpoints go; cells that are there already are not computed again."""


def main(settings: Settings) -> xr.DataTree:
    data = fga.datasets.load(settings.dataset)
    inputs, classes = data.train_inputs.shape[1], int(data.train_targets.max()) + 1
    width = settings.width
    network = fga.networks.mlp([inputs, width, width, width, classes], bias=False, seed=settings.seed)
    last = settings.epochs * -(-len(data.train_inputs) // 512)
    steps = settings.steps or (0, last // 2, last)
    run = fga.train(
        network, data, epochs=settings.epochs, checkpoints=steps, out=settings.out / "checkpoints", progress=True
    )
    print(f"trained to accuracy {run.log['train_accuracy'][-1]:.3f} (train), {run.log['test_accuracy'][-1]:.3f} (test)")
    batch = slice(0, settings.batch)
    inputs_of_batch = data.train_inputs[batch].to(settings.device)
    targets_of_batch = data.train_targets[batch].to(settings.device)
    trees = []
    for step in tqdm(steps, desc="steps", unit="step"):
        load_checkpoint(run.checkpoints[step], network)
        snapshot = fga.capture(
            network.to(settings.device),
            torch.nn.functional.cross_entropy,
            inputs_of_batch,
            targets_of_batch,
            step=step,
        )
        network.to("cpu")
        trees.append(fga.diagnose(snapshot, settings.estimators, settings.guesses, settings.seed, progress=True))
    tree = join(trees)
    tree["training"] = xr.DataTree(run.log)
    store.write(tree, settings.out / "bias_variance.nc")
    for space in fga.schema.SPACES:
        plotting.save(plotting.bias_variance(tree, space), settings.out / f"bias_variance_{space}.png")
        plotting.save(plotting.cosine(tree, space), settings.out / f"cosine_{space}.png")
    report(tree, settings.out)
    return tree


def report(tree: xr.DataTree, out: Path) -> None:
    """The table on the terminal: every estimator over all layers, and how far measurement and theory are apart."""
    table = fga.summary(tree)
    table.to_csv(out / "summary.csv", index=False)
    shown = table[table["layer"] == fga.schema.ALL_LAYERS]
    columns = ["step", "estimator", "space", "relative_bias", "variance", "cosine", "efficiency", "descent_probability"]
    print("\nAll layers together: measured ± standard error | predicted. Every layer: summary.csv")
    print(formatted(shown, columns).to_string(index=False))
    print("\nMeasured against predicted, z = (measured − predicted)/SE over all estimators, steps, layers and spaces")
    print(fga.agreement(tree).to_string(index=False))
    print(f"\nFigures, table and results are in {out}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
