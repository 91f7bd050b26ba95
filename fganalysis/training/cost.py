"""cost(): seconds, memory and passes of a training step with each estimator, beside backpropagation."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from fganalysis.arguments import check_choice, check_seed, check_whole, described
from fganalysis.capturing import refusals
from fganalysis.capturing.batch import map_tensors
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Autodiff, Loss
from fganalysis.estimators import Backpropagation, Estimator, label, passes_of, resolve
from fganalysis.estimators.passes import Passes
from fganalysis.results import schema
from fganalysis.statistics.medians import FEWEST, median_interval
from fganalysis.training.estimated_gradients import Untapped, check_untapped
from fganalysis.training.loop import ADAMW
from fganalysis.training.timed_steps import OneBatch
from fganalysis.training.timing import Step, peak_memory, seconds_in_turn
from fganalysis.training.training_arguments import MakeOptimizer, copy_to_train, made_optimizer

PLAIN, CHECKPOINTED = "backpropagation", "backpropagation, checkpointed"
BESIDE_PASSES = "beside_passes"  # Attribute.
Key = tuple[str, int]  # Label and number of guesses.


def cost(
    network: torch.nn.Module,
    batch: tuple[Any, Any],
    estimators: str | Estimator | Sequence[str | Estimator],
    *,
    loss_fn: Loss = torch.nn.functional.cross_entropy,
    n_guesses: int | Sequence[int] = 1,
    rounds: int = 21,
    optimizer: MakeOptimizer = ADAMW,
    autodiff: Autodiff = "reverse",
    untapped: Untapped = "refuse",
    seed: int = 0,
) -> xr.Dataset:
    """What a training step costs with each estimator: measured in seconds and bytes, and stated in passes.

    A step is the estimate of the gradient, the update by the optimiser and the learning of an estimator that learns, as
    `train` makes it. Every round times one step of each in turn, on a copy of the network whose weights are put back
    before every step. Backpropagation is always timed, and so is backpropagation with activation checkpointing
    (`torch.utils.checkpoint` of the network's parts).

    With ``autodiff="reverse"`` estimators take their slopes from the exact gradient, so that each step has a backward
    pass; with "forward" no step has. The passes are those of the estimator's paper in either case: see
    `fganalysis.estimators.passes`.

    Args:
        network, batch, loss_fn: as in `capture`, the batch as (inputs, targets).
        estimators: a key or an instance, or a list of these.
        n_guesses: guesses whose mean a step follows, or a list of such numbers.
        rounds: steps of each that are timed, at least 6, as an interval of a median takes.
        optimizer, autodiff, untapped: as in `train`. seed: of the noise.

    Returns:
        Dataset over (estimator, averaged), averaged the number of guesses:

        - ``seconds``: median over rounds; ``relative_seconds``: of the ratio to backpropagation in the same round. With
          bounds (`_low`, `_high`) of an interval that covers the median with at least 95 %, whatever the law of times,
          if rounds do not depend on each other: ``seconds`` of a machine that is slow for dozens of rounds are those of
          that hour, and ``relative_seconds`` are not;
          ``seconds_of_rounds`` has every time.
        - ``peak_memory``: most bytes of torch that a step holds above what it starts with (weights, batch, state of the
          optimiser); ``relative_peak_memory``: over backpropagation's. On the CPU one step has the same as another, so
          there is no interval.
        - ``forward_passes``, ``tangent_passes``, ``backward_passes``, ``layer_products``: as stated; ``passes``: all in
          units of a forward pass, and ``relative_passes`` over backpropagation's. NaN where an estimator states none,
          as a function of yours.

        The attribute ``not_measured`` has the reasons for other NaN, ``beside_passes`` what a step takes that is no
        pass, both JSON objects by label.

    Raises:
        ValueError: wrong arguments, two estimators with the same label, a network or loss that cannot be measured. If
            no estimator could be measured, the error of the first.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch must be a pair (inputs, targets), got {described(batch)}")
    counts = _counts(n_guesses)
    check_whole("rounds", rounds, FEWEST)
    check_choice("autodiff", autodiff, ("reverse", "forward"))
    check_untapped(untapped)
    check_seed("seed", seed)
    chosen = _by_label(estimators)
    refusals.refuse_bad_arguments(network, loss_fn, *batch, autodiff)
    trained = copy_to_train(network)
    device = refusals.device_of(trained)
    inputs, targets = (map_tensors(part, lambda t: t.detach().clone()) for part in batch)
    one_batch = OneBatch(trained, loss_fn, inputs, targets, made_optimizer(optimizer, trained), autodiff)
    start = copy.deepcopy(trained.state_dict())

    def back() -> None:
        trained.load_state_dict(start)

    def estimated(estimator: Estimator, count: int) -> Step:
        generator = torch.Generator(device).manual_seed(seed)
        return one_batch.estimated(estimator, generator, count, untapped)

    # Backpropagation makes no guesses, and is measured once.
    wanted: dict[Key, Callable[[], Step]] = {
        (PLAIN, counts[0]): one_batch.backpropagation,
        (CHECKPOINTED, counts[0]): one_batch.checkpointed,
    }
    for name, estimator in chosen.items():
        if name != PLAIN:
            wanted |= {(name, count): partial(estimated, estimator, count) for count in counts}
    snapshot = one_batch.checked
    steps, reasons = _that_run(wanted, back)
    if not any((name, count) in steps for name in chosen for count in counts):
        raise ValueError(next(reasons[name] for name in chosen))
    memory = {}
    for key, step in steps.items():
        back()
        trained.zero_grad()  # Otherwise a step would begin with the gradients of the last one.
        memory[key] = np.array(peak_memory(step, device))
    times = dict(zip(steps, seconds_in_turn(steps, rounds, before=back, device=device), strict=True))
    for name in (PLAIN, CHECKPOINTED):
        if (name, counts[0]) in times:
            times |= {(name, count): times[name, counts[0]] for count in counts}
            memory |= {(name, count): memory[name, counts[0]] for count in counts}
    stated = {(CHECKPOINTED, count): Passes(forward=2, backward=1) for count in counts}
    for name, estimator in {PLAIN: Backpropagation(), **chosen}.items():
        stated |= _stated(name, estimator, snapshot, counts)
    names = list(dict.fromkeys(name for name, _ in wanted))
    dataset = _dataset(names, counts, times, memory, stated)
    dataset.attrs = {
        "examples": snapshot.n_examples,
        "rounds": rounds,
        "autodiff": autodiff,
        "optimizer": type(one_batch.optimizer).__name__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "seed": seed,
        BESIDE_PASSES: json.dumps({name: " and ".join(of.beside) for (name, _), of in stated.items() if of.beside}),
        schema.NOT_MEASURED: json.dumps(reasons, ensure_ascii=False),
    }
    return dataset


def _counts(given: Any) -> list[int]:
    """Different numbers of guesses, as they are given: one or several."""
    several = list(given) if isinstance(given, list | tuple | range | np.ndarray) else [given]
    for count in several:
        check_whole("n_guesses", count)
    if not several or len(set(several)) < len(several):
        raise ValueError(f"n_guesses must be a whole number or several different ones, got {described(given)}")
    return [int(count) for count in several]


def _by_label(given: Any) -> dict[str, Estimator]:
    estimators = [resolve(item) for item in (given if isinstance(given, list | tuple) else [given])]
    names = [label(estimator) for estimator in estimators]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"estimators must be different ones and at least one, got {described(names)}")
    return dict(zip(names, estimators, strict=True))


def _that_run(wanted: Mapping[Key, Callable[[], Step]], back: Step) -> tuple[dict[Key, Step], dict[str, str]]:
    """The steps that run, each tried once, as the first one allocates, and the reasons of the others by label."""
    steps: dict[Key, Step] = {}
    reasons: dict[str, str] = {}
    for (name, count), make in wanted.items():
        try:
            step = make()
            back()
            step()
        except ValueError as error:
            reasons.setdefault(name, str(error))
        else:
            steps[name, count] = step
    return steps, reasons


def _stated(name: str, estimator: Estimator, snapshot: Snapshot, counts: Sequence[int]) -> dict[Key, Passes]:
    try:
        found = {(name, count): passes_of(estimator, snapshot, count) for count in counts}
    except ValueError:  # As of more rows than the batch has: why there are no times says the same.
        return {}
    return {key: passes for key, passes in found.items() if passes is not None}


def _dataset(
    names: Sequence[str],
    counts: Sequence[int],
    times: Mapping[Key, NDArray[np.float64]],
    memory: Mapping[Key, NDArray[Any]],
    stated: Mapping[Key, Passes],
) -> xr.Dataset:
    grid = [[(name, count) for count in counts] for name in names]
    of_rounds = _over(grid, times, len(next(iter(times.values()))))
    bytes_held = _over(grid, memory)
    kinds = {"forward_passes": "forward", "tangent_passes": "tangent", "backward_passes": "backward"}
    kinds |= {"layer_products": "products"}
    values = {name: {key: getattr(p, kind) for key, p in stated.items()} for name, kind in kinds.items()}
    values["passes"] = {key: p.in_forward_passes() for key, p in stated.items()}
    dims = (schema.ESTIMATOR, schema.AVERAGED)
    arrays: dict[str, Any] = {"seconds_of_rounds": ((*dims, schema.ROUND), of_rounds)}
    for name, every in {"seconds": of_rounds, "relative_seconds": of_rounds / of_rounds[:1]}.items():
        bounds = np.apply_along_axis(median_interval, -1, every)
        for number, suffix in enumerate(("", schema.LOW, schema.HIGH)):
            arrays[name + suffix] = (dims, bounds[..., number])
    arrays["peak_memory"] = (dims, bytes_held)
    arrays["relative_peak_memory"] = (dims, bytes_held / bytes_held[:1])
    arrays |= {name: (dims, _over(grid, of)) for name, of in values.items()}
    arrays["relative_passes"] = (dims, arrays["passes"][1] / arrays["passes"][1][:1])
    return schema.annotate(xr.Dataset(arrays, coords={schema.ESTIMATOR: list(names), schema.AVERAGED: list(counts)}))


def _over(grid: Sequence[Sequence[Key]], values: Mapping[Key, Any], *shape: int) -> NDArray[np.float64]:
    """(estimator, averaged, …), NaN where there is no value."""
    nothing = np.full(shape, np.nan)
    return np.array([[values.get(key, nothing) for key in row] for row in grid], np.float64)
