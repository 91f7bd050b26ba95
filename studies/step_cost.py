"""What does a training step cost with each estimator, beside a step of backpropagation?

Table 4 of Wang, Markou & Campbell 2025 (arXiv 2511.03110) is about cost: hours for W̃⊥ by a decomposition of every
example, less for W̃⊥-NS, minutes for W̃ᵀ. Here every step is timed in turn, round after round, in one process on the seed
paper's MLP: the gradient estimate and AdamW's update, as in `fganalysis.estimate_gradient`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
import xarray as xr
from tqdm import tqdm

import fganalysis as fga
from fganalysis import store
from fganalysis.estimators import Estimator, OrthogonalUpstream, Stateful, resolve
from studies.markdown import table

STEPS: dict[str, str | Estimator] = {
    "backpropagation": "backpropagation",
    "weight": "weight",
    "activity": "activity",
    "upstream (W̃ᵀ)": "upstream",
    "activation mixing": "activation_mixing",
    "multi-tangent, k = 1": fga.estimators.MultiTangent(k=1),
    "finite difference": "finite_difference",
    "feedback alignment": "feedback_alignment",
    "direct feedback": "direct_feedback",
    "forward direct feedback": "forward_direct_feedback",
    "local loss": "local_loss",
    "minibatch": fga.estimators.Minibatch(size=64),
    "orthogonal (W̃⊥), 1 iteration": OrthogonalUpstream(iterations=1),
    "orthogonal (W̃⊥), Krylov": OrthogonalUpstream(),
    "orthogonal (W̃⊥), SVD of every example": OrthogonalUpstream(exact=True),
    "Newton–Schulz (W̃⊥-NS)": "newton_schulz",
}
SLOW = ("orthogonal (W̃⊥), SVD of every example", "Newton–Schulz (W̃⊥-NS)")
EXACT = SLOW[0]
# Table 4: seconds of the whole training.
PRINTED = {
    (512, "Newton–Schulz (W̃⊥-NS)"): 6 * 3600,
    (512, EXACT): 40 * 3600,
    (512, "upstream (W̃ᵀ)"): 26 * 60,
    (128, "Newton–Schulz (W̃⊥-NS)"): 9 * 60,
    (128, EXACT): 3600,
    (128, "upstream (W̃ᵀ)"): 5 * 60,
}
PRINTED_STEPS = 300 * 8


@dataclass(frozen=True)
class Settings:
    """The MLP 40-w-w-w-10 without biases, on random inputs."""

    widths: tuple[int, ...] = (128, 512)
    """Widths of the hidden layers."""
    batch: int = 512
    """Examples in the batch, the paper's number."""
    rounds: int = 15
    """Interleaved steps of each estimator; medians are reported, and the range."""
    slow_rounds: int = 2
    """Rounds in which the two slowest, a minute a step at width 512, take part."""
    threads: int = 0
    """Threads of torch; 0 leaves its own choice."""
    out: Path = Path("results/step_cost")
    """Where the result and the page go."""
    page: Path | None = None
    """A folder that gets the page too."""


def main(settings: Settings) -> xr.Dataset:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    parts = [_measure(settings, width) for width in settings.widths]
    dataset = xr.concat(parts, dim=xr.IndexVariable("width", list(settings.widths))).to_dataset(name="seconds")
    dataset["seconds"].attrs = {"units": "s", "long_name": "wall time of one training step"}
    dataset["ratio"] = dataset["seconds"] / dataset["seconds"].sel(gradient="backpropagation")
    dataset["ratio"].attrs = {"units": "1", "long_name": "the same over backpropagation's in the same round"}
    dataset.attrs = {"batch": settings.batch, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    store.write(dataset, settings.out / "step_cost.nc")
    for folder in (settings.out, settings.page):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "step_cost.md").write_text(page(dataset))
    print(page(dataset))
    return dataset


def _measure(settings: Settings, width: int) -> xr.DataArray:
    """Seconds of a step, (gradient, round); NaN where one did not take part in the round."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(settings.batch, 40, generator=generator)
    targets = torch.randint(0, 10, (settings.batch,), generator=generator)
    steps = {name: _step(resolve(one), width, inputs, targets) for name, one in STEPS.items()}
    for name, step in steps.items():
        if name not in SLOW:
            step()  # The first one allocates.
    times = np.full((len(steps), settings.rounds), np.nan)
    for turn in tqdm(range(settings.rounds), desc=f"width {width}", unit="round"):
        for row, (name, step) in enumerate(steps.items()):
            if name not in SLOW or turn < settings.slow_rounds:
                start = time.perf_counter()
                step()
                times[row, turn] = time.perf_counter() - start
    return xr.DataArray(times, dims=("gradient", "round"), coords={"gradient": list(steps)})


def _step(estimator: Estimator, width: int, inputs: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    """One step of training on a network of its own: estimate, update, and the state of an estimator that has one."""
    network = fga.networks.mlp([40, width, width, width, 10], bias=False, seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    loss_fn = torch.nn.functional.cross_entropy
    if isinstance(estimator, Stateful):
        estimator = estimator.initialised(fga.capture(network, loss_fn, inputs, targets))

    def plain() -> None:
        optimizer.zero_grad()
        loss_fn(network(inputs), targets).backward()
        optimizer.step()

    def estimated() -> None:
        fga.estimate_gradient(network, loss_fn, inputs, targets, estimator, generator)
        optimizer.step()

    def stateful() -> None:
        nonlocal estimator
        snapshot = fga.snapshot.freeze(network, loss_fn, inputs, targets, autodiff="reverse", step=0)
        fga.training.fill_gradients(snapshot, estimator, 1, generator)
        assert isinstance(estimator, Stateful)
        estimator = estimator.advanced(snapshot, generator)
        optimizer.step()

    if isinstance(estimator, fga.estimators.Backpropagation):
        return plain
    return stateful if isinstance(estimator, Stateful) else estimated


def page(dataset: xr.Dataset) -> str:
    """Tables of seconds and ratios, and the paper's table 4 beside."""
    attributes = dataset.attrs
    lines = [
        "# What does a training step cost with each estimator?",
        "",
        "Written by `python -m studies.step_cost` from its Dataset: do not edit. MLP 40-w-w-w-10 without biases, batch "
        f"{attributes['batch']}, one guess a step, {attributes['threads']} threads of a CPU, torch "
        f"{attributes['torch']}. Every round times one step of each in turn; median over rounds (smallest to largest), "
        "and the median of its ratio to backpropagation's step in the same round.",
        "",
    ]
    for width in dataset["width"].values:
        rows = []
        for name in dataset["gradient"].values:
            own = dataset.sel(width=width, gradient=name).dropna("round")
            if not own.sizes["round"]:
                continue
            milliseconds = own["seconds"].values * 1e3
            spread = f"{np.median(milliseconds):.4g} ({milliseconds.min():.4g}–{milliseconds.max():.4g})"
            rows.append([str(name), spread, f"{np.median(own['ratio']):.3g}", str(own.sizes["round"])])
        lines += [f"## Width {width}", "", table(("step", "ms", "backpropagation steps", "rounds"), rows), ""]
        lines += [_against_decomposition(dataset.sel(width=width)), ""]
    rows = []
    for (width, name), printed in PRINTED.items():
        if width in dataset["width"].values:
            ours = float(dataset["seconds"].sel(width=width, gradient=name).median())
            rows.append([str(width), name, f"{printed / PRINTED_STEPS:.3g}", f"{ours:.3g}"])
    if rows:
        lines += [
            "## Table 4 of the paper",
            "",
            f"Its times over the {PRINTED_STEPS} steps of 300 epochs, on a laptop with a GPU whose decompositions ran "
            "on the CPU; ours on the machine above. Seconds a step.",
            "",
            table(("width", "step", "paper", "ours"), rows),
            "",
        ]
    return "\n".join(lines)


def _against_decomposition(own: xr.Dataset) -> str:
    exact = own["seconds"].sel(gradient=EXACT)
    ratios = {
        name: float((exact / own["seconds"].sel(gradient=name)).median())
        for name in ("orthogonal (W̃⊥), Krylov", "orthogonal (W̃⊥), 1 iteration")
    }
    said = ", ".join(f"{ratio:.1f} × faster ({name})" for name, ratio in ratios.items())
    return f"Against the same step with an SVD of every example, W̃⊥ (k = 10) is {said}."


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__, prog="python -m studies.step_cost"))
