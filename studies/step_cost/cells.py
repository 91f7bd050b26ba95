"""What `studies.step_cost` times: a training step of every estimator, in turn, round after round."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.estimators import Estimator, LocalLoss, MultiTangent, OrthogonalUpstream, resolve
from fganalysis.estimators.local.heads import DEFAULT_WIDTHS
from fganalysis.training.timed_steps import OneBatch
from fganalysis.training.timing import Step, seconds_in_turn
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


def timed(
    width: int,
    batch: int,
    rounds: int,
    slow_rounds: int,
    slow_examples: int,
    device: str,
    threads: int,
    machine: str,
) -> xr.Dataset:
    """The seconds of `measure`, by a number of torch's threads on a machine, which the process is told beforehand."""
    seconds = measure(width, batch, rounds, slow_rounds, slow_examples, device)
    return seconds.to_dataset(name="seconds").assign_attrs(threads=threads, machine=machine)


def measure(
    width: int, batch: int, rounds: int, slow_rounds: int, slow_examples: int, device: str = "cpu"
) -> xr.DataArray:
    """Seconds of a step, (gradient, round); NaN where an estimator did not take part in the round.

    The `SLOW` ones take part in the first ``slow_rounds`` rounds, with ``slow_examples`` of the batch's examples; their
    times are multiplied up to the batch.
    """
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(batch, 40, generator=generator).to(device)
    targets = torch.randint(0, 10, (batch,), generator=generator).to(device)
    examples = {name: min(slow_examples, batch) if name in SLOW else batch for name in STEPS}
    steps = {
        name: _step(resolve(estimator), width, inputs[: examples[name]], targets[: examples[name]])
        for name, estimator in STEPS.items()
    }
    for name, step in steps.items():
        if name not in SLOW:
            step()  # The first one allocates.

    def takes_part(name: str, turn: int) -> bool:
        return name not in SLOW or turn < slow_rounds

    times = seconds_in_turn(
        steps, rounds, takes_part=takes_part, device=torch.device(device), described=f"width {width}"
    )
    times *= batch / np.array([examples[name] for name in steps])[:, None]
    return xr.DataArray(times, dims=("gradient", "round"), coords={"gradient": list(steps)})


def _step(estimator: Estimator, width: int, inputs: torch.Tensor, targets: torch.Tensor) -> Step:
    """One step of training on a network of its own: estimate, update, and the state of an estimator that has one."""
    network = fga.networks.mlp(arithmetic.sizes(width), bias=False, seed=0).to(inputs.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    one_batch = OneBatch(network, torch.nn.functional.cross_entropy, inputs, targets, optimizer)
    return one_batch.estimated(estimator, torch.Generator(inputs.device).manual_seed(0))
