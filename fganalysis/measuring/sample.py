"""sample(): many guesses of one estimator on one snapshot, as one Dataset, in the way that suits both.

The ways have a file each: guesses written out in blocks (direct.py), drawn part by part (streamed.py), or by their law
(by_law.py).
"""

from __future__ import annotations

from pathlib import Path

import torch
import xarray as xr

from fganalysis.arguments import check_flag, check_path, check_seed, check_whole
from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, resolve
from fganalysis.measuring.along_directions import Way, dataset_along_directions
from fganalysis.measuring.by_law import way_by_law
from fganalysis.measuring.direct import DirectSample
from fganalysis.measuring.drawing import drawn
from fganalysis.measuring.sound_guesses import check_arguments
from fganalysis.measuring.streamed import is_streamed, way_streamed


def check_settings(
    n_guesses: object,
    seed: object,
    memory: object,
    progress: object,
    block_size: object = None,
    workers: object = None,
    keep_sums: object = None,
) -> None:
    """Checks the settings that do not depend on the estimator.

    Raises:
        ValueError: fewer than two guesses, a wrong seed, a ``memory``, ``block_size`` or ``workers`` that is not a
            positive whole number, a ``progress`` that is not True or False, or a ``keep_sums`` that is no path.
    """
    check_whole("n_guesses", n_guesses, 2)
    check_seed("seed", seed)
    check_whole("memory", memory, 1)
    check_flag("progress", progress)
    for name, value in (("block_size", block_size), ("workers", workers)):
        if value is not None:
            check_whole(name, value)
    if keep_sums is not None:
        check_path("keep_sums", keep_sums)


def sample(
    snapshot: Snapshot,
    estimator: str | Estimator,
    n_guesses: int = 4096,
    seed: int = 0,
    *,
    block_size: int | None = None,
    memory: int = 2**30,
    workers: int | None = None,
    progress: bool = False,
    by_law: bool = False,
    keep_sums: str | Path | None = None,
) -> xr.Dataset:
    """Measures an estimator: all of `schema.QUANTITIES`, such as bias, variance and cosine, with errors and intervals.

    Args:
        snapshot: from `capture`.
        estimator: a key of `ESTIMATORS` or an instance.
        n_guesses: number of guesses.
        seed: of the noise. The same seed gives the same numbers.
        block_size: guesses in a block. Another size gives other noise. Default: what fits the caches, at most 16.
        memory: bytes for sums over groups of guesses, for two numbers for each guess, layer and space, and for the
            blocks that are computed at the same time. It limits the number of such blocks, and changes no result as
            long as it holds the sums of all groups: else there are fewer groups, with wider intervals, and the
            attribute ``fewer_groups`` says so. Where a device runs out of memory for a block, the same guesses are
            made in parts, whose sums round in another order.
            Factors that an estimator keeps with the snapshot, as the singular vectors of `OrthogonalUpstream`, are not
            counted. Weight guesses on networks of more than 2²⁴ weights are streamed: each direction is drawn twice,
            part by part, so that their memory does not grow with the network.
        workers: threads on the CPU; default the number of cores (one on a GPU or in forward mode).
        progress: shows a bar on the terminal.
        by_law: draws guesses at the weights by their law, at a cost that does not grow with the network: exact for
            `WeightPerturbation` and `MultiTangent` with Gaussian or spherical noise and for means of these
            (`Averaged`), and the limit of small epsilon for central differences. The attribute ``by_law`` is then 1,
            and ``metrics_left_out`` lists the variables of registered metrics that take the guesses themselves.
        keep_sums: a file for the sums over groups of guesses, written every minute and at the end. A run with the same
            file goes on from what it holds, also with more guesses, and gives the numbers of a run without it. Groups
            must be as many: ask for a multiple of 64 blocks, as of 1024 guesses of a small network. Sums of anything
            else are renamed, and named in the log.

    Returns:
        Dataset over (space, layer); the layers are the names of the taps and "all". It also has the scalars of every
        guess and the Gram matrix of group means, from which all estimates are computed. The attribute
        ``not_looked_at`` is a JSON list of the network's trainable parameters that are in no layer. Neither autocast
        nor torch's default data type changes the numbers.

    Raises:
        ValueError: n_guesses below 2; an unknown estimator; memory too small for one block; a seed below 0; no
            snapshot; a gradient that is not finite; guesses of a wrong number, of another shape or data type than the
            gradient, or not finite; a device without memory for a block whose guesses cannot be made in parts;
            ``by_law`` with an estimator whose guesses have no such law, or with a ``block_size``.
    """
    check_arguments(snapshot, seed)
    check_settings(n_guesses, seed, memory, progress, block_size, workers, keep_sums)
    check_flag("by_law", by_law)
    chosen = resolve(estimator)
    with torch.no_grad(), full_precision(snapshot):
        if (way := way_of(chosen, snapshot, by_law, block_size)) is None:
            direct = DirectSample.of(snapshot, chosen, n_guesses, seed, block_size, memory)
            kept = drawn(direct, direct.all_groups, workers=workers, progress=progress, keep_sums=keep_sums)
            return direct.dataset(kept)
        if keep_sums is not None:
            raise ValueError("keep_sums is for guesses that are written out whole, and these are not: leave it out")
        return dataset_along_directions(
            snapshot, chosen, way, n_guesses, seed, memory=memory, workers=workers, progress=progress
        )


def way_of(estimator: Estimator, snapshot: Snapshot, by_law: bool, block_size: int | None) -> Way | None:
    """How guesses are drawn that are not written out; None for those that are."""
    if by_law:
        if block_size is not None:
            raise ValueError("block_size is of guesses that are written out: leave it out, or use by_law=False")
        return way_by_law(snapshot, estimator)
    if block_size is None and is_streamed(estimator, snapshot):
        return way_streamed(snapshot, estimator)
    return None
