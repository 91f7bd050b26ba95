"""What does a training step cost with each estimator, beside a step of backpropagation?

Table 4 of Wang, Markou & Campbell 2025 (arXiv 2511.03110) is about cost: hours for W̃⊥ by a decomposition of every
example, less for W̃⊥-NS, minutes for W̃ᵀ. Here every step is timed in turn, round after round, in one process on the
seed paper's MLP: the gradient estimate and AdamW's update, as in `fganalysis.estimate_gradient`. At width 512 and batch
512 W̃⊥ is held to 1/15 of the step with an SVD of every example, every other estimator to three backpropagation steps.
Where one is dearer, the page says by arithmetic what any implementation of it must cost (`step_cost_arithmetic`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

import fganalysis as fga
from fganalysis.capturing.capture import freeze
from fganalysis.estimators import Estimator, LocalLoss, MultiTangent, OrthogonalUpstream, Stateful, resolve
from fganalysis.estimators.local.heads import DEFAULT_WIDTHS
from fganalysis.estimators.upstream.newton_schulz_polynomials import COMPOSITIONS
from fganalysis.results import store
from fganalysis.training.estimated_gradients import fill_gradients
from studies.kit import command_line, pages
from studies.kit.markdown import listed, table
from studies.step_cost import arithmetic

EXACT = "orthogonal (W̃⊥), SVD of every example"
NEWTON_SCHULZ = "Newton–Schulz (W̃⊥-NS)"
PRECONDITIONED = "preconditioned (W̃^P)"
MLP_HEAD, SMALL_MLP = f"local loss, MLP head, 3 × {DEFAULT_WIDTHS['mlp']}", "local loss, MLP head, 3 × 128"
CNN_HEAD, SMALL_CNN = f"local loss, CNN head, {DEFAULT_WIDTHS['cnn']} channels", "local loss, CNN head, 4 channels"
PROJECTED = "multi-tangent, k = 10, orthogonal"

STEPS: dict[str, str | Estimator] = {
    "backpropagation": "backpropagation",
    "weight": "weight",
    "activity": "activity",
    "upstream (W̃ᵀ)": "upstream",
    "activation mixing": "activation_mixing",
    "multi-tangent, k = 1": MultiTangent(k=1),
    "multi-tangent, k = 4, orthogonal": MultiTangent(k=4, combine="orthogonal"),
    PROJECTED: MultiTangent(k=10, combine="orthogonal"),
    "finite difference": "finite_difference",
    "feedback alignment": "feedback_alignment",
    "direct feedback": "direct_feedback",
    "forward direct feedback": "forward_direct_feedback",
    "local loss, linear head": "local_loss",
    MLP_HEAD: LocalLoss(head="mlp"),
    CNN_HEAD: LocalLoss(head="cnn"),
    SMALL_MLP: LocalLoss(head="mlp", width=128),
    SMALL_CNN: LocalLoss(head="cnn", width=4),
    "minibatch": fga.estimators.Minibatch(size=64),
    "orthogonal (W̃⊥), 1 iteration": OrthogonalUpstream(iterations=1),
    "orthogonal (W̃⊥), Krylov": OrthogonalUpstream(),
    EXACT: OrthogonalUpstream(exact=True),
    NEWTON_SCHULZ: "newton_schulz",
    PRECONDITIONED: "preconditioned",
}
SLOW = (EXACT, NEWTON_SCHULZ)
FAST = ("orthogonal (W̃⊥), 1 iteration", "orthogonal (W̃⊥), Krylov")  # W̃⊥ with k = 10, without a decomposition.
JUDGED = {"width": 512, "batch": 512}  # Where the bounds are asked for.
LEAST_GAIN, MOST_STEPS = 15, 3
LARGE_HEADS, SMALL_HEADS = (MLP_HEAD, CNN_HEAD), (SMALL_MLP, SMALL_CNN)
WITHOUT_SVD = (
    "no Jacobian is decomposed. Below a layer that is at least as wide the directions are drawn by their law, which is "
    "that of the noise at the live units; below the outputs they come from J and a root of J Jᵀ, exactly."
)
# Table 4: seconds of the whole training.
PRINTED = {
    (512, NEWTON_SCHULZ): 6 * 3600,
    (512, EXACT): 40 * 3600,
    (512, "upstream (W̃ᵀ)"): 26 * 60,
    (128, NEWTON_SCHULZ): 9 * 60,
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
    rounds: int = 11
    """Interleaved steps of each estimator; medians are reported, and the range."""
    slow_rounds: int = 5
    """Rounds in which the two slowest take part, up to half a minute a step of the whole batch at width 512."""
    slow_examples: int = 64
    """Examples of the batch on which those are timed; the time is multiplied up to the batch."""
    threads: int = 0
    """Threads of torch; 0 leaves its own choice."""
    out: Path = Path("results/step_cost")
    """Where the result goes."""
    page: Path | None = None
    """Where step_cost.md goes, if not to `out`; docs/results replaces the committed one."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"threads": 0})


def main(settings: Settings) -> xr.Dataset:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    parts = [_measure(settings, width) for width in settings.widths]
    dataset = xr.concat(parts, dim=xr.IndexVariable("width", list(settings.widths))).to_dataset(name="seconds")
    dataset["seconds"].attrs = {"units": "s", "long_name": "wall time of one training step"}
    dataset["ratio"] = dataset["seconds"] / dataset["seconds"].sel(gradient="backpropagation")
    dataset["ratio"].attrs = {"units": "1", "long_name": "the same over backpropagation's in the same round"}
    dataset.attrs = {"batch": settings.batch, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    dataset.attrs["slow_examples"] = min(settings.slow_examples, settings.batch)
    store.write(dataset, settings.out / "step_cost.nc")
    pages.write("step_cost", page(dataset), {}, settings.out, settings.page)
    print(page(dataset))
    return dataset


def _measure(settings: Settings, width: int) -> xr.DataArray:
    """Seconds of a step, (gradient, round); NaN where one did not take part in the round."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(settings.batch, 40, generator=generator)
    targets = torch.randint(0, 10, (settings.batch,), generator=generator)
    examples = {name: min(settings.slow_examples, settings.batch) if name in SLOW else settings.batch for name in STEPS}
    steps = {
        name: _step(resolve(one), width, inputs[: examples[name]], targets[: examples[name]])
        for name, one in STEPS.items()
    }
    for name, step in steps.items():
        if name not in SLOW:
            step()  # The first one allocates.
    times = np.full((len(steps), settings.rounds), np.nan)
    for turn in tqdm(range(settings.rounds), desc=f"width {width}", unit="round"):
        for row, (name, step) in enumerate(steps.items()):
            if name not in SLOW or turn < settings.slow_rounds:
                start = time.perf_counter()
                step()
                times[row, turn] = (time.perf_counter() - start) * settings.batch / examples[name]
    return xr.DataArray(times, dims=("gradient", "round"), coords={"gradient": list(steps)})


def _step(estimator: Estimator, width: int, inputs: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    """One step of training on a network of its own: estimate, update, and the state of an estimator that has one."""
    network = fga.networks.mlp(arithmetic.sizes(width), bias=False, seed=0)
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
        optimizer.zero_grad()
        fga.estimate_gradient(network, loss_fn, inputs, targets, estimator, generator)
        optimizer.step()

    def stateful() -> None:
        nonlocal estimator
        optimizer.zero_grad()
        snapshot = freeze(network, loss_fn, inputs, targets, autodiff="reverse", step=0)
        fill_gradients(snapshot, estimator, 1, generator)
        assert isinstance(estimator, Stateful)
        estimator = estimator.advanced(snapshot, generator)
        optimizer.step()

    if isinstance(estimator, fga.estimators.Backpropagation):
        return plain
    return stateful if isinstance(estimator, Stateful) else estimated


def page(dataset: xr.Dataset) -> str:
    """Tables of seconds and ratios, whether the bounds hold, and the paper's table 4 beside."""
    attributes = dataset.attrs
    scaled = ""
    if attributes["slow_examples"] < attributes["batch"]:
        scaled = (
            f" Steps with * are timed on {attributes['slow_examples']} examples and multiplied by "
            f"{attributes['batch'] / attributes['slow_examples']:g}: they work through their examples one by one."
        )
    lines = [
        "# What does a training step cost with each estimator?",
        "",
        "Written by `python -m studies.step_cost` from its Dataset: do not edit. MLP 40-w-w-w-10 without biases, batch "
        f"{attributes['batch']}, one guess a step, {attributes['threads']} threads of a CPU, torch "
        f"{attributes['torch']}. Every round times one step of each in turn; median over rounds (smallest to largest), "
        f"and the same of its ratio to backpropagation's step in the same round.{scaled}",
        "",
    ]
    for width in dataset["width"].values:
        own = dataset.sel(width=width)
        judged = {"width": int(width), "batch": int(attributes["batch"])} == JUDGED
        header = ("step", "ms", "backpropagation steps", "rounds", *(["bound", "holds"] if judged else []))
        rows = []
        for name in dataset["gradient"].values:
            one = own.sel(gradient=name).dropna("round")
            if not one.sizes["round"]:
                continue
            star = "*" if scaled and name in SLOW else ""
            row = [f"{name}{star}", _spread(one["seconds"].values * 1e3, 4), _spread(one["ratio"].values, 3)]
            rows.append([*row, str(one.sizes["round"]), *(_verdict(own, str(name)) if judged else [])])
        lines += [f"## Width {width}", "", table(header, rows), "", _against_decomposition(own), ""]
        if judged:
            lines += [*_bounds(own), "", f"{PRECONDITIONED}: {WITHOUT_SVD}", ""]
    return "\n".join([*lines, *_table_4(dataset)])


def _spread(values: np.ndarray, digits: int) -> str:
    return f"{np.median(values):.{digits}g} ({values.min():.{digits}g}–{values.max():.{digits}g})"


def _steps(own: xr.Dataset, name: str) -> float:
    """Median over rounds of a step's ratio to backpropagation's."""
    return float(own["ratio"].sel(gradient=name).median())


def _gain(own: xr.Dataset, name: str) -> float:
    """Median over rounds of the ratio of the step with an SVD of every example to this one."""
    return float((own["seconds"].sel(gradient=EXACT) / own["seconds"].sel(gradient=name)).median())


def _verdict(own: xr.Dataset, name: str) -> list[str]:
    """The bound of a step and whether its median keeps it; the SVD, which W̃⊥ is held against, has none."""
    if name == EXACT:
        return ["–", "–"]
    if name in FAST:
        return [f"SVD at least {LEAST_GAIN} × slower", "yes" if _gain(own, name) >= LEAST_GAIN else "no"]
    return [f"at most {MOST_STEPS} ×", "yes" if _steps(own, name) <= MOST_STEPS else "no"]


def _bounds(own: xr.Dataset) -> list[str]:
    """Which steps keep their bounds, and for each of the others why not."""
    failing = {str(name) for name in own["gradient"].values if _verdict(own, str(name))[1] == "no"}
    slow = [name for name in FAST if name in failing]
    verdict = f"does not hold for {listed(slow)}" if slow else "holds"
    lines = [
        f"That W̃⊥ is at least {LEAST_GAIN} × faster than with an SVD of every example {verdict}, by the median over "
        "rounds.",
        "",
    ]
    dear = [str(name) for name in own["gradient"].values if name in failing and name not in FAST]
    if not dear:
        return [*lines, f"That every other step costs at most {MOST_STEPS} backpropagation steps holds too."]
    lines += [f"That every other step costs at most {MOST_STEPS} backpropagation steps holds but for these:", ""]
    width = int(own["width"])
    lines += [f"- {name}, {_steps(own, name):.3g} ×: {_why(name, width)}." for name in dear]
    if set(LARGE_HEADS) & set(dear):
        kept = [name for name in SMALL_HEADS if name not in dear]
        costs = listed(f"{name.removeprefix('local loss, ')} ({_steps(own, name):.3g} ×)" for name in kept)
        said = f"keep the bound: {costs}" if len(kept) == len(SMALL_HEADS) else "do not all keep the bound"
        lines += [
            "",
            f"So it is the heads' size that costs: heads smaller than the network {said}.",
        ]
    return lines


def _why(name: str, width: int) -> str:
    """Why a step is dearer than `MOST_STEPS`, as far as it is known."""
    own, step = arithmetic.network(width), arithmetic.backpropagation(width)
    if name in (*LARGE_HEADS, *SMALL_HEADS):
        head = STEPS[name]
        assert isinstance(head, LocalLoss)
        theirs = arithmetic.all_heads(head.head, head.width, width)
        said = (
            f"a forward pass through its heads takes {theirs / 1e6:.3g} million multiply-adds an example, through the "
            f"network {own / 1e6:.3g} million; forward and back to the blocks the heads take "
            f"{2 * theirs / step:.2g} backpropagation steps of arithmetic"
        )
        slower = "convolutions of so few channels run far below the speed of matrix products"
        return f"{said}, and {slower}" if head.head == "cnn" else said
    if name == NEWTON_SCHULZ:
        ways, fewest = arithmetic.newton_schulz(width), arithmetic.fewest_products(width, width // 2)
        return (
            f"it takes a polynomial of degree {arithmetic.DEGREE} of every example's Jacobian J. In backpropagation "
            "steps of arithmetic, with half of the units live and matrices multiplied in the ordinary way, that is "
            f"{ways['matrices']:.3g} by the matrix products that are made here, JᵀJ alone, the first of them, "
            f"{ways['gram']:.3g}; {ways['vectors']:.3g} by {arithmetic.DEGREE} products of J and Jᵀ with a vector; and "
            f"{ways['fewest']:.3g} by {fewest} of those, without which no polynomial of J takes given values at "
            f"{width // 2} singular values. So no exact way through such products keeps {MOST_STEPS} ×"
        )
    if name == PROJECTED:
        return "it draws ten directions of all weights, takes a slope along each and solves for their projection"
    return "no reason is known"


def _against_decomposition(own: xr.Dataset) -> str:
    exact = own["seconds"].sel(gradient=EXACT)
    said = [
        f"{_gain(own, name):.1f} × faster ({name}; the fastest round with an SVD over its slowest is "
        f"{float(exact.min() / own['seconds'].sel(gradient=name).max()):.1f} ×)"
        for name in FAST
    ]
    return f"Against the same step with an SVD of every example, W̃⊥ (k = 10) is {listed(said)}."


def _table_4(dataset: xr.Dataset) -> list[str]:
    """Its seconds a step beside ours, and what ours say of W̃⊥-NS against the SVD, which is what that table shows."""
    rows = []
    for (width, name), printed in PRINTED.items():
        if width in dataset["width"].values:
            ours = float(dataset["seconds"].sel(width=width, gradient=name).median())
            rows.append([str(width), name, f"{printed / PRINTED_STEPS:.3g}", f"{ours:.3g}"])
    if not rows:
        return []
    lines = [
        "## Table 4 of the paper",
        "",
        f"Its times over the {PRINTED_STEPS} steps of 300 epochs, on a laptop with a GPU whose decompositions ran "
        "on the CPU; ours on the machine above. Seconds a step.",
        "",
        table(("width", "step", "paper", "ours"), rows),
        "",
    ]
    gains = {int(row[0]): _gain(dataset.sel(width=int(row[0])), NEWTON_SCHULZ) for row in rows}
    for width, gain in gains.items():
        paper = PRINTED[width, EXACT] / PRINTED[width, NEWTON_SCHULZ]
        said = f"{gain:.2g} × faster" if gain >= 1 else f"{1 / gain:.2g} × slower"
        lines.append(
            f"At width {width} W̃⊥-NS is {said} here than an SVD of every example; in the paper {paper:.2g} × faster."
        )
    if min(gains.values()) < 1:
        lines.append(
            "So W̃⊥-NS does not spare time on every machine: in the paper its products run on the GPU and the "
            f"decompositions on the CPU, here both on the same cores, where {4 * COMPOSITIONS} dense products cost "
            "more than a decomposition."
        )
    return [*lines, ""]


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
