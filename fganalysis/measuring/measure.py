"""measure(): draws of any origin against a gradient of any origin, without a network, as one Dataset.

Blocks, generators, groups of guesses, estimates and intervals are those of `fganalysis.sample`, so that draws of an
estimator that `sample` knows give its numbers. Where the gradient is an estimate, `fganalysis.statistics`'
estimated_truth.py takes its error in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from fganalysis import metrics
from fganalysis.arguments import check_choice
from fganalysis.capturing.coordinates import over_layers
from fganalysis.capturing.precision import full_precision
from fganalysis.estimators.guesses import Sums
from fganalysis.measuring.blocks import MOST_GROUPS, Seeds, fitting
from fganalysis.measuring.direct import SCALAR_BYTES, WORKING_COPIES, default_block_size
from fganalysis.measuring.group_ranges import even_groups, fitting_groups
from fganalysis.measuring.guess_sums import BlockSums, GroupSums, GuessScalars
from fganalysis.measuring.own_draws import DrawFunction, Source, errors_of, grams, shapes_of, source_of
from fganalysis.measuring.sample import check_settings
from fganalysis.measuring.sampled_dataset import RawNumbers, attributes, sampled_dataset
from fganalysis.measuring.truth import Generators, Truth, truth_of
from fganalysis.results import schema
from fganalysis.statistics.estimated_truth import Groups, about_estimated_truth

GROUPS_AT_ONCE = 3  # Copies of group means: sums, their stack, their errors.
DrawsOrFunction = DrawFunction | Iterable[Mapping[str, Any]]


def measure(
    draw: DrawsOrFunction,
    truth: Truth | Mapping[str, Any] | None,
    n_guesses: int = 4096,
    seed: int = 0,
    *,
    baseline: DrawsOrFunction | None = None,
    generator: Generators | None = None,
    block_size: int | None = None,
    memory: int = 2**30,
    progress: bool = False,
) -> xr.Dataset:
    """Measures draws of any origin: all of `schema.QUANTITIES`, with errors and intervals, in space `parameter`.

    Args:
        draw: (n, generator) → mapping from the names of the truth to arrays (n, …) or, with one guess a call, (…); its
            noise must come from the generator. Or an iterable of such mappings, made before, in parts of any numbers
            of guesses: they are read one by one, in their order. NumPy, torch and anything with ``__array__`` or
            DLPack. Guesses must be independent: where those of one call share something, as a minibatch, ask for
            ``block_size=1``. The seeds take in the qualified name of the function, or its attribute ``stable_name``:
            two functions of one name get the same noise.
        truth: the exact gradient, a mapping from names to arrays, or what `fganalysis.truth` returns, which may have
            standard errors. None with a ``baseline``.
        n_guesses: number of guesses. seed: of the noise. The same seed gives the same numbers.
        baseline: a second draw, known to be unbiased, where there is no truth: a gradient is then estimated by as many
            guesses of it. Made before, its parts must have a dimension of guesses.
        generator: the kind that draws are called with, "numpy" (the default) or "torch"; None that of the truth.
        block_size: guesses of a generator. Another size gives other noise. Default: as in `sample`, at most 16.
        memory: bytes for sums over groups of guesses, two numbers for each guess and layer, and a block. Where it does
            not hold the sums of all groups there are fewer, as in `sample`.
        progress: shows a bar on the terminal.

    Returns:
        Dataset as that of `sample`, over (space, layer), with the one space "parameter"; the layers are the names and
        "all". Variables of registered metrics, which take a network, are left out: ``metrics_left_out`` lists them.

        With standard errors or a baseline the squared bias is less the squared error of the truth on average, and all
        intervals take that error in (`fganalysis.statistics.estimated_truth`): ``gradient_norm`` is an estimate, and
        cosine, directional_bias and descent_probability are NaN. The attribute ``truth`` says what it is, and
        ``relative_truth_error`` is the root of E‖T − g‖²/‖g‖² over all layers.

    Raises:
        ValueError: what `fganalysis.truth` and `sample` refuse; neither truth nor baseline, or both; a draw that is no
            function of (n, generator), returns other names, shapes or numbers of guesses, takes its noise from
            elsewhere, or makes guesses that are NaN or infinite; draws made before that are too few.
    """
    check_settings(n_guesses, seed, memory, progress, block_size)
    if generator is not None:
        check_choice("generator", generator, ("numpy", "torch"))
    if (truth is None) == (baseline is None):
        raise ValueError("measure takes a truth or, where there is none, a baseline: give one of the two")
    with torch.no_grad():
        if baseline is None:
            known = truth_of(truth, generator)
        else:
            known, baseline = shapes_of(baseline, generator or "numpy")
        with full_precision(known):
            return _measured(draw, known, baseline, Settings(n_guesses, seed, block_size, memory, progress))


@dataclass(frozen=True)
class Settings:
    """As in `measure`."""

    n_guesses: int
    seed: int
    block_size: int | None
    memory: int
    progress: bool


@dataclass(frozen=True)
class Plan:
    """How guesses are drawn. most_groups: of guesses, that there would be if memory were no matter."""

    n_guesses: int
    seed: int
    block_size: int
    n_groups: int
    most_groups: int
    progress: bool

    @classmethod
    def of(cls, settings: Settings, numbers: int, n_layers: int, sides: int) -> Plan:
        """numbers: of a guess. sides: 2 where the truth has groups too. Raises ValueError for too little memory."""
        block_size = settings.block_size or default_block_size(numbers)
        n_blocks = -(-settings.n_guesses // block_size)
        of_group = sides * GROUPS_AT_ONCE * numbers * SCALAR_BYTES
        of_block = numbers * SCALAR_BYTES * (block_size * WORKING_COPIES + 1)
        scalars = 2 * (n_layers + 1) * settings.n_guesses * SCALAR_BYTES
        n_groups = fitting_groups(n_blocks, MOST_GROUPS, settings.memory - scalars - of_block, of_group)
        fitting(settings.memory, n_groups * of_group + scalars, of_block, f" for blocks of {block_size}")
        most = even_groups(n_blocks)
        return cls(settings.n_guesses, settings.seed, block_size, n_groups, most, settings.progress)

    @property
    def group_of_guess(self) -> NDArray[np.int64]:
        return (np.arange(self.n_guesses) // self.block_size) % self.n_groups

    @property
    def weights(self) -> NDArray[np.float64]:
        """The shares of the groups in all guesses, (group,)."""
        return np.bincount(self.group_of_guess, minlength=self.n_groups) / self.n_guesses


@dataclass(frozen=True)
class Drawn:
    """What is kept of guesses. precision: of their data type, relative."""

    groups: GroupSums
    scalars: GuessScalars
    precision: float


def _drawn(source: Source, truth: Truth, plan: Plan, seeds: Seeds) -> Drawn:
    probe = source.probe
    kept = GroupSums(plan.n_groups, BlockSums(1, probe.total(), []))
    scalars, precision = GuessScalars(probe, truth, plan.n_guesses), 0.0
    starts = range(0, plan.n_guesses, plan.block_size)
    for index, start in enumerate(tqdm(starts, source.__name__, disable=not plan.progress)):
        wanted = min(plan.block_size, plan.n_guesses - start)
        guesses = source.block(plan.block_size, wanted, seeds.generator(index))
        scalars.write(guesses, truth, start, plan.seed)
        kept.add(index % plan.n_groups, BlockSums(wanted, guesses.total(), []))
        precision = max(precision, guesses.precision())
    scalars.refuse_infinite(plan.seed, 0, plan.n_guesses)
    return Drawn(kept, scalars, precision)


def _measured(draw: Any, truth: Truth, baseline: Any, settings: Settings) -> xr.Dataset:
    numbers = sum(gradient.numel() for gradient in truth.gradients)
    estimated = baseline is not None or truth.standard_errors is not None
    plan = Plan.of(settings, numbers, len(truth.layers), 1 + estimated)
    source = source_of(draw, truth, plan.n_guesses)  # Refused before anything is drawn.
    about: dict[str, object] = {schema.TRUTH: "exact"}
    of_truth: list[Sums] | None = None
    precision = 0.0
    if baseline is not None:
        second = source_of(baseline, truth, plan.n_guesses)
        drawn = _drawn(second, truth, plan, _seeds(plan, truth, second).named("baseline"))
        of_truth, precision = drawn.groups.means(), drawn.precision
        truth = replace(truth, gradients=_mean(of_truth, plan.weights))
        about = {schema.TRUTH: f"estimated by the baseline {second.__name__}"}
    elif truth.standard_errors is not None:
        of_truth = _of_standard_errors(truth, plan)
        about = {schema.TRUTH: "estimated, with standard errors"}
    drawn = _drawn(source, truth, plan, _seeds(plan, truth, source))
    means = drawn.groups.means()
    errors = errors_of(means, truth)
    gram = grams(errors, errors)
    raw = RawNumbers.of(
        drawn.scalars, gram.cpu().numpy(), plan.group_of_guess, truth.squared_gradients(), plan.most_groups
    )
    precision = max(precision, drawn.precision)
    if of_truth is None:
        estimates, norm = raw.estimates(precision), None
    else:
        groups = _groups(raw, errors, errors_of(of_truth, truth), truth)
        estimates, norm = about_estimated_truth(
            raw.inner_product, raw.squared_norm, groups, raw.group_of_guess, precision
        )
        raw = replace(raw, gram=groups.errors())
    dataset = sampled_dataset(truth, source.__name__, raw, [estimates])
    if norm is not None:
        dataset["gradient_norm"].values[:] = norm.value
        for quantile in schema.COSINE_QUANTILES:
            dataset[quantile].values[:] = np.nan
        square, whole = norm.value[0, -1] ** 2, float(truth.squared_gradients()[0, -1])
        about[schema.TRUTH_ERROR] = float(np.sqrt(max(whole - square, 0.0) / square)) if square > 0 else np.nan
    dataset.attrs = attributes(truth, source.__name__, {}, raw, plan.seed, plan.block_size, ())
    left_out = [name for metric in metrics.registered() for name in metric.variables]
    dataset.attrs |= {schema.METRICS_LEFT_OUT: json.dumps(left_out), **about}
    return schema.validate(schema.annotate(dataset))


def _seeds(plan: Plan, truth: Truth, source: Source) -> Seeds:
    return Seeds(plan.seed, truth.step, source.noise_name, truth.device)


def _mean(of_groups: list[Sums], weights: NDArray[np.float64]) -> Sums:
    """The mean over all guesses of the means of groups."""
    shares = torch.from_numpy(weights).to(of_groups[0][0].device)
    layers = zip(*of_groups, strict=True)
    return tuple(torch.tensordot(shares, torch.stack(parts), dims=1) for parts in layers)


def _of_standard_errors(truth: Truth, plan: Plan) -> list[Sums]:
    """Means of groups whose mean is the truth, and which vary as its standard errors say.

    If the truth is T ~ N(g, σ²), and z_a ~ N(0, σ²/w_a) with shares w_a that add up to 1, then T + z_a − ∑ w_b z_b are
    independent of each other, each of mean g and variance σ²/w_a: deviations are independent of the mean. So a truth
    with standard errors is one with groups.
    """
    assert truth.standard_errors is not None
    generator = Seeds(plan.seed, truth.step, "truth", truth.device).generator(0)
    shares = torch.from_numpy(plan.weights).to(truth.device)[:, None, None]
    layers = []
    for gradient, error in zip(truth.gradients, truth.standard_errors, strict=True):
        shape = (plan.n_groups, *gradient.shape)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64, device=truth.device) * error
        noise /= shares.sqrt()
        layers.append(gradient + noise - (shares * noise).sum(0))
    return [tuple(layer[group] for layer in layers) for group in range(plan.n_groups)]


def _groups(raw: RawNumbers, guesses: Sums, truths: Sums, truth: Truth) -> Groups:
    """Inner products of group means, with layer "all". guesses, truths: deviations from the truth's mean."""
    along = [deviations @ gradient.flatten() for deviations, gradient in zip(truths, truth.gradients, strict=True)]
    cross, own, with_mean = (
        _with_all(part) for part in (grams(guesses, truths), grams(truths, truths), torch.stack(along)[None])
    )
    return Groups(raw.gram, cross, own, with_mean, raw.squared_gradient)


def _with_all(part: Tensor) -> NDArray[np.float64]:
    array = part.cpu().numpy()
    whole: NDArray[np.float64] = np.concatenate([array, over_layers(array)[:, None]], axis=1)
    return whole
