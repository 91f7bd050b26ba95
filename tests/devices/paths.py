"""Every path of the package, on the pretended device and on the CPU: prints a line of JSON for each.

Run as a program, as the device is registered for a whole process: python -m tests.devices.paths
A path is a function of a device that returns numbers. It passes where nothing is refused and the numbers are those of
the CPU; the last paths make a mistake each, and must be refused.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.batch import map_tensors
from fganalysis.capturing.errors import CannotMeasure
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label
from fganalysis.measuring import curvature, streamed
from fganalysis.measuring.along_directions import dataset_along_directions
from fganalysis.testing import exact_moments, signs
from studies.architectures import cells as architectures
from studies.architectures.networks import DEFAULT_TEXT
from studies.averaging import cells as averaging
from studies.calibration import cells as calibration
from studies.facts import cells as facts
from studies.fdfa import conv as fdfa_conv
from studies.fdfa import training as fdfa_training
from studies.fdfa import variance as fdfa_variance
from studies.finite_difference import cells as finite_difference
from studies.guess_target import cells as guess_target
from studies.guess_target import resnet
from studies.mutants import cells as mutants
from studies.ren_variance import cells as ren_variance
from studies.step_cost import cells as step_cost
from studies.subspaces import cells as subspaces
from studies.subspaces import descent
from studies.tangents import cells as tangents
from studies.wang2025 import cells as wang2025
from tests.devices import pretended
from tests.law_claims import rows
from tests.networks.zoo import ZOO

Path_ = Callable[[torch.device], Any]
CPU = torch.device("cpu")
SIZES = [6, 16, 16, 12, 4]
GUESSES = 64
# What rounding explains between two orders of a sum; on the pretended device there is none.
CLOSE = 1e-6
# Off the CPU torch computes these by fused kernels, which nothing stands in for here.
WITHOUT_KERNELS = ("lstm", "gru")
cross_entropy = torch.nn.functional.cross_entropy


def batch(n_examples: int = 10, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n_examples, SIZES[0], generator=generator, dtype=dtype)
    return inputs, torch.randint(0, SIZES[-1], (n_examples,), generator=generator)


def snapshot_on(device: torch.device, dtype: torch.dtype = torch.float32, **settings: Any) -> Snapshot:
    network = fga.networks.mlp(SIZES, seed=0, activation=torch.nn.Tanh, dtype=dtype).to(device)
    inputs, targets = (part.to(device) for part in batch(dtype=dtype))
    return fga.capture(network, cross_entropy, inputs, targets, **settings)


def moved(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """A copy on a device; tensors that modules share are shared there too."""
    tensors = [*network.parameters(), *network.buffers()]
    there: dict[int, Any] = {id(part): part.detach().to(device) for part in tensors}
    for parameter in network.parameters():
        there[id(parameter)] = torch.nn.Parameter(there[id(parameter)], parameter.requires_grad)
    return copy.deepcopy(network, there)


def numbers_of(result: Any) -> dict[str, np.ndarray]:
    """Every number in what a path returns, by name."""
    if isinstance(result, xr.DataTree):
        parts = {path: numbers_of(node.to_dataset()) for path, node in result.subtree_with_keys}
        return {f"{path}/{name}": value for path, part in parts.items() for name, value in part.items()}
    if isinstance(result, xr.Dataset):
        named = {str(name): array.values for name, array in result.data_vars.items()}
        return {name: values for name, values in named.items() if values.dtype.kind in "fiub"}
    if isinstance(result, Mapping):
        parts = {name: numbers_of(part) for name, part in result.items()}
        return {f"{name}.{inner}": value for name, part in parts.items() for inner, value in part.items()}
    if isinstance(result, list | tuple):
        return numbers_of(dict(enumerate(result)))
    if isinstance(result, Tensor):
        return {"": result.detach().cpu().numpy()}
    return {} if result is None else {"": np.asarray(result)}


def compared(there: Any, here: Any) -> str:
    """Empty where both are the same numbers, else what differs most."""
    found, expected = numbers_of(there), numbers_of(here)
    assert found.keys() == expected.keys() and expected, "a path must return the same numbers on both devices"
    for name, numbers in expected.items():
        scale = np.nanmax(np.abs(numbers[np.isfinite(numbers)]), initial=0.0) if numbers.size else 0.0
        if not np.allclose(found[name], numbers, rtol=CLOSE, atol=CLOSE * float(scale), equal_nan=True):
            return f"{name or 'the result'} differs from the CPU's"
    return ""


def captured(name: str, autodiff: Any, device: torch.device) -> Any:
    """Exact gradients of a network of the zoo, the slopes along a direction, and a difference of losses."""
    case = ZOO[name]()
    network = moved(case.network, device)
    inputs, targets = (map_tensors(part, lambda t: t.to(device)) for part in (case.inputs, case.targets))
    try:
        snapshot = fga.capture(network, case.loss_fn, inputs, targets, autodiff=autodiff)
    except CannotMeasure as error:
        if autodiff == "forward" and "autodiff='reverse'" in str(error):
            return 0.0  # As on the CPU, or the comparison fails.
        raise
    slopes = snapshot.slopes([torch.ones_like(tap.outputs)[None] for tap in snapshot.taps], by_example=False)
    of_weights = snapshot.weight_slopes([torch.ones_like(layer.weight)[None] for layer in snapshot.weights])
    return snapshot.gradients, snapshot.weight_gradients, slopes, of_weights


def guessed(estimator: Estimator, device: torch.device) -> Any:
    """Guesses written out, from the generator of a device."""
    snapshot = snapshot_on(device, torch.float64)
    if isinstance(estimator, fga.estimators.Stateful):
        estimator = estimator.initialised(snapshot)
        estimator = estimator.advanced(snapshot, torch.Generator(device).manual_seed(1))
    with torch.no_grad():
        guesses = estimator(snapshot, 3, torch.Generator(device).manual_seed(0))
        return guesses.dense(snapshot), guesses.inner_products(snapshot), guesses.total()


def sampled(estimator: str | Estimator, device: torch.device, **settings: Any) -> xr.Dataset:
    found = fga.sample(snapshot_on(device), estimator, GUESSES, **settings)
    if estimator == "backpropagation":  # Without variance, this is the rounding of a difference.
        found = found.drop_vars([name for name in found.data_vars if str(name).startswith("wang2025_variance")])
    return found


def sums_kept(device: torch.device) -> xr.Dataset:
    """A sample that goes on from a file."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"block_size": 1, "keep_sums": Path(folder) / "sums"}
        fga.sample(snapshot_on(device), "activity", 64, **settings)
        return fga.sample(snapshot_on(device), "activity", 128, **settings)


def in_parts(device: torch.device) -> xr.Dataset:
    """A sample merged from parts that were computed apart."""
    snapshot, settings = snapshot_on(device), {"block_size": 1, "n_parts": 2}
    parts = [fga.sample_part(snapshot, "activity", GUESSES, part=part, **settings) for part in (1, 0)]
    return fga.merge_parts(snapshot, "activity", parts)


def streamed_weights(device: torch.device) -> xr.Dataset:
    snapshot, estimator = snapshot_on(device), fga.estimators.MultiTangent(k=2, combine="orthogonal")
    way = streamed.way_streamed(snapshot, estimator)
    with torch.no_grad():
        return dataset_along_directions(
            snapshot, estimator, way, GUESSES, 0, memory=2**30, workers=None, progress=False
        )


def trained(gradient: str | Estimator, device: torch.device, **settings: Any) -> Any:
    """A run, stopped and continued: its log and its weights."""
    network = fga.networks.mlp(SIZES, seed=0, activation=torch.nn.Tanh)
    inputs, targets = batch(24)
    arrays = (part.to(device) for part in (inputs, targets, inputs[:8], targets[:8]))
    data = fga.datasets.Dataset(*arrays)
    settings = {"batch_size": 8, "log_every": 2} | settings
    with tempfile.TemporaryDirectory() as folder:
        train = partial(fga.train, network.to(device), data, gradient, out=folder, **settings)
        first = train(epochs=1, checkpoints=[3])
        run = train(epochs=2, checkpoints=[3, 6], continue_from=first.checkpoints[3])
        saved = {path.name for path in Path(folder).rglob("*") if path.is_file()}
        assert saved, "the run must leave checkpoints"
    return run.log, dict(run.network.named_parameters())


def gradient_filled(device: torch.device) -> Any:
    network = moved(fga.networks.gpt(5, 4, width=8, heads=2, blocks=1, seed=0), device)
    tokens = torch.randint(0, 5, (3, 4), generator=torch.Generator().manual_seed(0)).to(device)
    loss_fn: Any = lambda outputs, targets: cross_entropy(outputs.flatten(0, 1), targets.flatten())  # noqa: E731
    generator = torch.Generator(device).manual_seed(0)
    fga.estimate_gradient(network, loss_fn, tokens, tokens, "weight", generator, untapped="perturb")
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def checked(estimator: str | Estimator, device: torch.device) -> Any:
    verdict = fga.check_unbiased(estimator, snapshot_on(device), max_guesses=4096)
    findings = [[finding.log_evidence, *finding.interval] for finding in verdict.findings]
    return {"n": verdict.n_guesses, "unbiased": verdict.outcome == "unbiased", "findings": np.array(findings)}


def moments(estimator: Estimator, device: torch.device) -> Any:
    network = fga.networks.mlp([2, 2, 2], bias=False, seed=0, dtype=torch.float64).to(device)
    inputs, targets = torch.ones(2, 2, dtype=torch.float64), torch.tensor([0, 1])
    snapshot = fga.capture(network, cross_entropy, inputs.to(device), targets.to(device))
    found = exact_moments(estimator, snapshot, law=signs)
    return found.weight_mean, found.weight_covariance


def curved(device: torch.device) -> Any:
    snapshot = snapshot_on(device, torch.float64)
    products = (curvature.hessian_product(snapshot), curvature.gauss_newton_product(snapshot))
    size = sum(layer.weight.numel() for layer in snapshot.weights)
    return [product(torch.linspace(-1, 1, size, dtype=torch.float64).to(device)) for product in products]


def parts_of_the_variance(device: torch.device) -> Any:
    estimator = fga.estimators.Subsampled(fga.estimators.ActivityPerturbation(), 4)
    generator = torch.Generator(device).manual_seed(0)
    parts = fga.variance_parts(estimator, snapshot_on(device), 64, generator)
    predicted = fga.predict_variance_parts(estimator, snapshot_on(device))
    return [vars(part) for both in (parts, predicted) for part in vars(both).values()]


def slow_gradient(network: Any, loss_fn: Any, inputs: Any, targets: Any, generator: torch.Generator) -> Any:
    """A stranger's estimator: weight perturbation by hand."""
    parameters = dict(network.named_parameters())
    noise = {
        name: torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype, device=generator.device)
        for name, parameter in parameters.items()
    }
    call: Any = lambda w: loss_fn(torch.func.functional_call(network, w, (inputs,)), targets)  # noqa: E731
    slope = torch.func.jvp(call, (parameters,), (noise,))[1]
    return {name: slope * part for name, part in noise.items()}


def paths() -> dict[str, Path_]:
    found: dict[str, Path_] = {}
    for number, name in enumerate(name for name in ZOO if not name.startswith(WITHOUT_KERNELS)):
        found[f"capture {name}, reverse"] = partial(captured, name, "reverse")
        if number % 3 == 0:  # Forward mode reads the same recording, and takes far longer than the rest.
            found[f"capture {name}, forward"] = partial(captured, name, "forward")
    for number, row in enumerate(rows()):
        found[f"guess {number}: {label(row.estimator)}"] = partial(guessed, row.estimator)
    for key in fga.estimators.ESTIMATORS:
        found[f"sample {key}"] = partial(sampled, key)
        found[f"predict {key}"] = lambda device, key=key: fga.predict(snapshot_on(device), key)  # type: ignore[misc]
        found[f"train by {key}"] = partial(trained, key)
    for key in ("weight", "activity"):
        found[f"train by {key}, forward"] = partial(trained, key, autodiff="forward")
        found[f"check {key}"] = partial(checked, key)
    found |= {f"cell of {name}": partial(study, of) for name, of in CELLS.items()}
    return found | {
        "sample activity, sums kept": sums_kept,
        "sample activity, in parts": in_parts,
        "sample weight by law": partial(sampled, "weight", by_law=True),
        "sample weight, streamed": streamed_weights,
        "sample a function": partial(sampled, fga.estimators.from_function(slow_gradient)),
        "diagnose": lambda device: fga.diagnose(
            snapshot_on(device), ["activity", "weight", "orthogonal", "local_loss"], GUESSES, subspace=True
        ),
        "gradient of a transformer": gradient_filled,
        "moments by enumeration": partial(moments, fga.estimators.WeightPerturbation()),
        "curvature": curved,
        "parts of the variance": parts_of_the_variance,
    }


@dataclass(frozen=True)
class OnTheCPU:
    """A guess whose noise, or whose generator, is on the CPU by mistake."""

    mistake: str

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Any:
        shapes = [(n_guesses, *tap.outputs.shape) for tap in snapshot.taps]
        if self.mistake == "noise":
            noise = [torch.ones(shape) for shape in shapes]
        elif self.mistake == "generator":
            noise = [torch.randn(shape, generator=torch.Generator(), device=snapshot.device) for shape in shapes]
        elif self.mistake == "draw":
            noise = [torch.randn(shape, generator=generator).to(snapshot.device) for shape in shapes]
        else:
            noise = [torch.from_numpy(tap.outputs.numpy())[None] for tap in snapshot.taps]
        slopes = snapshot.slopes(noise, by_example=False)[:, 0, 0]
        return fga.estimators.guesses.ActivationEstimates(tuple(slopes[:, None, None] * part for part in noise))


MISTAKES = ("noise", "generator", "draw", "numpy")


def study(of: Callable[[str, Path], Any], device: torch.device) -> Any:
    """What a cell of a study holds. of: the name of a device and a folder for what is kept while it is computed."""
    with tempfile.TemporaryDirectory() as folder:
        return of(str(device), Path(folder))


CELLS: dict[str, Callable[[str, Path], Any]] = {
    "averaging": lambda device, folder: averaging.measured(16, 0, 0, "activity", 64, 8, device),
    "averaging, training": lambda device, folder: averaging.trained(16, 0, 1, device, folder),
    "wang2025": lambda device, folder: wang2025.trained(wang2025.Training("upstream", 16, 0, 1, device), folder),
    "architectures": lambda device, folder: architectures.cell(
        "conv net",
        "base",
        0,
        batch=4,
        guesses=32,
        steps=2,
        learning_rate=1e-3,
        device=device,
        text=DEFAULT_TEXT,
        scratch=folder,
    ),
    "subspaces": lambda device, folder: subspaces.training_cell(
        subspaces.Training(8, "orthogonal", 0, 1, 1, 2, (1,), 64, True, 4, 4000, 1e-3, "mnist1d", device), folder
    ),
    "subspaces, descent": lambda device, folder: descent.descend(
        descent.Settings(8, warm_up=1, steps=1, k=2, seed=0, dataset="mnist1d", examples=16, batch=8, device=device)
    ),
    "fdfa": lambda device, folder: fdfa_variance.measure(
        "digits", 8, 1, 4, (0.3,), fdfa_variance.Sizes(4, 4, 5, 64), 0, device, folder
    ),
    "fdfa, training": lambda device, folder: fdfa_training.run(
        "digits", fdfa_training.ADAM, (0.1,), 1e-3, 8, 1, 512, 1e-3, 0, device, folder
    ),
    "fdfa, conv": lambda device, folder: fdfa_conv.measured(
        fdfa_conv.Conv(0, (2, 3), 4, 1, 2, (0.3,), 2, 4, 3, 64, device), folder
    ),
    "guess_target": lambda device, folder: of_one_head(
        guess_target, guess_target.Network(0, 16, 8, 4, 1e-3, (1,), 8, 64, device), folder
    ),
    "guess_target, training": lambda device, folder: guess_target.trained(
        guess_target.Training("local, mlp head", 0, 8, 8, 1e-3, 1, device), folder
    ),
    "guess_target, ResNet": lambda device, folder: of_one_head(
        resnet, resnet.ResNet(0, (2, 2), 4, 2, 3e-3, 1, 1, 4, 16, device), folder
    ),
    "facts": lambda device, folder: facts.same_law(8, 4, 64, 0, device),
    "facts, one pass": lambda device, folder: facts.joint_pass(8, 4, 64, 0, 1, device),
    "facts, table": lambda device, folder: facts.paper_table("table_2", 16, 1, 8, 64, 0, device, folder),
    "finite_difference": lambda device, folder: finite_difference.cell(
        finite_difference.Network("relu", 0, 8, 4, 16, (-12, -8), -10, -9, device)
    ),
    "tangents": lambda device, folder: tangents.qualities(8, 2, 32, 64, 64, 4, 0, device),
    "ren_variance": lambda device, folder: ren_variance.point(
        2, 2, 4, draws=40, guesses_per_batch=20, n_examples=8, seed=0, device=device
    ),
    "calibration": lambda device, folder: calibration.coverage("activity", 20, 64, 0, device),
    "calibration, factors": lambda device, folder: calibration.coverage("weight, times 1 + t", 20, 64, 0, device),
    "calibration, alarms": lambda device, folder: calibration.false_alarms("rare events", 1, 0.01, 2048, 0, device),
    "calibration, power": lambda device, folder: calibration.power(0.4, 1, 0.01, 4096, 0, device),
    "mutants": lambda device, folder: mutants.row("spread", False, 1, 256, 0.1, 2048, "signs", device),
    "step_cost": lambda device, folder: timed_steps(device),
}


def of_one_head(study: Any, of: Any, folder: Path) -> xr.Dataset:
    """A cell of `studies.guess_target` of one kind of heads, of few guesses and, on the ResNet, of two blocks."""
    fewer: dict[str, Any] = {"KINDS": ("cnn",)}
    if study is resnet:
        blocks = ("blocks.0", "blocks.1")
        fewer |= {"STAGES": (1, 1), "BLOCKS": blocks, "BATCH_SIZE": 512}
    else:
        fewer |= {"GUESSES": ("cnn head", "live"), "TARGETS": ("global",)}
    with mock.patch.multiple(study, **fewer):
        return study.measured(of, folder)


def timed_steps(device: str) -> dict[str, Any]:
    """Which steps of `studies.step_cost` were timed: how long they took is no number to compare."""
    steps = {name: step_cost.STEPS[name] for name in ("backpropagation", "weight", "local loss, linear head")}
    with mock.patch.object(step_cost, "STEPS", steps):
        times = step_cost.measure(8, 8, 1, 1, 8, device)
    return {"timed": np.isfinite(times.values)}


def waits_in_blocks(device: torch.device) -> Iterator[tuple[str, dict[str, float]]]:
    """What the host waits for in a block of `fga.sample`, by the kind of operation, for each estimator."""
    snapshot, n_blocks = snapshot_on(device), 8
    for key in fga.estimators.ESTIMATORS:
        of_runs = []
        for n_guesses in (16, 16, 16 * (1 + n_blocks)):  # The first makes what is kept with the snapshot.
            with pretended.waits() as waits:
                fga.sample(snapshot, key, n_guesses)
            of_runs.append(waits)
        yield key, {kind: (count - of_runs[1][kind]) / n_blocks for kind, count in of_runs[2].items()}


def outcome(path: Path_, device: torch.device) -> dict[str, Any]:
    """error: what went wrong, or nothing. waits: what the host waited for, by kind."""
    try:
        with pretended.waits() as waits:
            there = path(device)
        error = compared(there, path(CPU))
    except Exception as failure:
        return {"error": f"{type(failure).__name__}: {failure}", "waits": {}}
    return {"error": error, "waits": dict(waits)}


def main() -> None:
    device = pretended.install()
    warnings.simplefilter("ignore")
    wanted = sys.argv[1:]
    found = paths() | {f"mistake: {name}": partial(sampled, OnTheCPU(name)) for name in MISTAKES}
    for name, path in found.items():
        if all(word in name for word in wanted):
            print(json.dumps({"path": name} | outcome(path, device)), flush=True)
    if not wanted:
        for key, waits in waits_in_blocks(device):
            print(json.dumps({"path": f"block {key}", "error": "", "waits": waits}), flush=True)


if __name__ == "__main__":
    main()
