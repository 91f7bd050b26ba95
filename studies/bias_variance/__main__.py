"""How biased and how noisy is every gradient guess, at the start, in the middle and at the end of training?

Trains the seed paper's MLP by backpropagation, freezes it at several steps, draws thousands of guesses of every
estimator on one batch, and puts the closed-form prediction beside each measured number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import fganalysis as fga
from studies.bias_variance import figures
from studies.bias_variance import page as bias_variance_page
from studies.bias_variance.cells import Plan, diagnosed
from studies.kit import command_line, kept_cells, pages
from studies.kit.command_line import DatasetName, Device

ESTIMATORS = ("backpropagation", "weight", "activity", "upstream", "orthogonal", "newton_schulz", "preconditioned")
# The settings that a result depends on and that its path does not say.
DEPENDS_ON = ("guesses", "estimators", "batch", "dataset", "epochs", "device")


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
    """Where results, pages, figures and checkpoints go; steps that are finished there are not computed again."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"steps": 0, "guesses": 2}, optional=("steps",))
        for key in self.estimators:
            fga.estimators.resolve(key)


def main(settings: Settings) -> None:
    data = fga.datasets.load(settings.dataset)
    plan = Plan(
        epochs=settings.epochs,
        steps=settings.steps,
        estimators=settings.estimators,
        guesses=settings.guesses,
        batch=settings.batch,
        device=settings.device,
        memory=settings.memory,
    )
    chosen = kept_cells.depends_on(settings, *DEPENDS_ON)
    for width in settings.widths:
        for seed in settings.seeds:
            folder = settings.out / f"width_{width}" / f"seed_{seed}"
            tree, log = diagnosed(plan, chosen, data, width, seed, folder)
            figures.write(tree, folder)
            fga.summary(tree).to_csv(folder / "summary.csv", index=False)
            text = bias_variance_page.page(tree, log, chosen | {"width": width, "seed": seed})
            pages.write("bias_variance", text, {}, folder, None)
            print(f"{text}\nResults, figures and the whole table are in {folder}")


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
