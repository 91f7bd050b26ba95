"""progress(): what a step along a guess does to the loss, to second order: which step size, and how far it gets.

    E L(θ − ηĝ) ≈ L − η⟨ḡ, g⟩ + (η²/2) E ĝᵀHĝ
    best step η* = ⟨ḡ, g⟩/E ĝᵀHĝ     decrease Δ* = ⟨ḡ, g⟩²/(2 E ĝᵀHĝ)     curved efficiency = Δ*/(‖g‖⁴/(2 gᵀHg))

Source: docs/mathematics.md#progress-of-a-step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from fganalysis.arguments import check_choice
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, settings
from fganalysis.measuring.curved_guesses import curved_guesses
from fganalysis.measuring.diagnose import estimators_by_label, snapshots_of_one_training
from fganalysis.measuring.joining import as_attribute, in_a_sentence
from fganalysis.measuring.kinks import has_kinks
from fganalysis.measuring.network_curvature import of_network
from fganalysis.measuring.progress_dataset import (
    cautions,
    estimator_dataset,
    network_cautions,
    network_dataset,
    said,
)
from fganalysis.measuring.sample import check_settings
from fganalysis.measuring.second_derivatives import Curvature
from fganalysis.measuring.ways_to_products import MATRICES_OF_CURVATURE, Matrix
from fganalysis.results import schema

NETWORK = "network"


def progress(
    snapshot: Snapshot | Sequence[Snapshot],
    estimators: str | Estimator | Sequence[str | Estimator],
    n_guesses: int = 512,
    seed: int = 0,
    *,
    curvature: Matrix = "hessian",
    memory: int = 2**30,
    progress: bool = False,
) -> xr.Dataset:
    """Measures which step size suits each estimator, and how much the loss then decreases, beside the gradient.

    Takes one product with the curvature and two losses for every guess, as many products more for the network's trace,
    and up to twice as many for a prediction; no matrix of the weights is ever held. The guesses are those of
    `fganalysis.sample` with the same seed, drawn twice, as far as that writes them out.

    Over (step, estimator), and where said also over ``averaged``, 1, 2, 4, … guesses whose mean is the step. Those with
    a ° are estimated from the guesses: beside ``x`` stand ``x_se``, ``x_low``, ``x_high``, ``x_wide`` and ``x_short``,
    as in `fganalysis.sample`. Those with a † are predicted too, ``x_predicted``, NaN where the second moment of the
    guess is not known; ``x_predicted_se`` is the error that the random directions of a large network leave in it.
    Central differences are predicted as those of a loss that is quadratic over ±εz, without rounding.

        slope_along °†         ⟨ḡ, g⟩                                                  (loss per unit of weight)²
        mean_curvature °†      ḡᵀHḡ                                                    loss³ per (unit of weight)⁴
        curvature_along °†     E ĝᵀHĝ of the mean of so many guesses; averaged         loss³ per (unit of weight)⁴
        best_step °†           η*; averaged                                            (unit of weight)² per loss
        expected_decrease °†   Δ*; averaged                                            loss
        curved_efficiency °†   Δ* over that of the gradient; averaged                  1
        step_known             1 if the intervals of ⟨ḡ, g⟩ and E ĝᵀHĝ are above 0; averaged
        decrease_at_step °     L − E L(θ − η*ĝ) of one guess, by evaluating losses     loss
        curvature_at_step °    E (L(θ − η*ĝ) + L(θ + η*ĝ) − 2L)/η*²                    loss³ per (unit of weight)⁴
        unseen_curvature °     that over E ĝᵀHĝ, less 1: kinks and higher derivatives  1
        guess_slope, guess_curvature, guess_curvature_with_others, guess_decrease, guess_curvature_at_step
                               the same of every guess; over guess

    Of the network, over (step, layer) with "all" last, H being the layer's block of the curvature:

        squared_gradient       ‖g‖²                                                    (loss per unit of weight)²
        gradient_curvature     gᵀHg                                                    loss³ per (unit of weight)⁴
        gradient_step          ‖g‖²/gᵀHg, the best step of backpropagation             (unit of weight)² per loss
        gradient_decrease      ‖g‖⁴/(2 gᵀHg)                                           loss
        curvature_trace °      tr H, by Hutch++                                        loss per (unit of weight)²
        effective_rank °       r = tr H ‖g‖²/gᵀHg                                      1
        loss                   of the batch; over step alone                           loss
        has_kinks              1 if the loss has kinks, such as of ReLU; over step alone

    ``best_step`` and what follows is NaN where ⟨ḡ, g⟩ is not positive, and ∞ where only E ĝᵀHĝ is not. Where the
    interval of E ĝᵀHĝ holds zero, the upper bounds are ∞. The attribute ``cautions`` has a sentence for each such
    thing, for kinks, and for curvature that the best step meets and H does not show: JSON, from label or "network" to a
    list. The attribute ``not_measured`` says why an estimator has no numbers, as in `fganalysis.diagnose`, and
    ``not_predicted`` why it has no prediction: JSON, from label to a sentence.

    Args:
        snapshot: one snapshot, or several of one training. estimators: a key or an instance, or a list of these.
        n_guesses: of each estimator, and random directions for the trace. seed: of both.
        curvature: "hessian", or "gauss_newton": J'ℓ''J, of the outputs' Jacobian and the loss's own Hessian, positive
            semi-definite for losses that are convex in the outputs.
        memory: bytes for blocks of guesses and sums, see `fganalysis.sample`. progress: shows a bar on the terminal.

    Raises:
        ValueError: wrong arguments, as `fganalysis.diagnose` refuses them; a network or loss without second
            derivatives; if no estimator could be measured, the error of the first.
    """
    chosen, snapshots = estimators_by_label(estimators), snapshots_of_one_training(snapshot)
    check_settings(n_guesses, seed, memory, progress)
    check_choice("curvature", curvature, MATRICES_OF_CURVATURE)
    sentences: dict[str, list[str]] = {}
    failures: dict[str, str] = {}
    unknown: dict[str, str] = {}
    rows = []
    for one in snapshots:
        product = Curvature(one, curvature)
        with product.threads():
            network = of_network(one, product, n_guesses, seed)
        of_step = network_dataset(one, network, has_kinks(one))
        _add(sentences, NETWORK, network_cautions(of_step), one, snapshots)
        parts: dict[str, xr.Dataset] = {}
        precision = float(torch.finfo(one.dtype).eps)
        for name, estimator in chosen.items():
            try:
                with product.threads():
                    guesses = curved_guesses(one, estimator, product, n_guesses, seed, memory=memory, progress=progress)
                    parts[name] = estimator_dataset(one, estimator, guesses, network, precision)
            except Warning:
                raise
            except Exception as error:  # Users' code may raise anything: the results of others must stay.
                failures.setdefault(name, in_a_sentence(error))
                first_error = error
                continue
            _add(sentences, name, cautions(parts[name]), one, snapshots)
            if schema.NOT_PREDICTED in parts[name].attrs:
                unknown.setdefault(name, parts[name].attrs[schema.NOT_PREDICTED])
        if not parts:
            raise ValueError(f"no estimator could be measured; {next(iter(failures.items()))[1]}") from first_error
        nothing = xr.full_like(next(iter(parts.values())), np.nan)
        of_estimators = [
            parts[name] if name in parts else nothing.assign_coords({schema.ESTIMATOR: name}) for name in chosen
        ]
        rows.append(xr.merge([of_step, xr.concat(of_estimators, dim=schema.ESTIMATOR)], compat="no_conflicts"))
    dataset = xr.concat(rows, dim=schema.STEP)
    dataset.attrs = {
        "settings": json.dumps({name: settings(estimator) for name, estimator in chosen.items()}),
        "n_guesses": n_guesses,
        "seed": seed,
        schema.CURVATURE_KIND: curvature,
        "products": product.way,
        **snapshots[0].facts,
        "device": str(snapshots[0].device.type),
        "dtype": str(snapshots[0].dtype).removeprefix("torch."),
        schema.CAUTIONS: said(sentences),
    } | as_attribute([failures] if failures else [])
    if unknown:
        dataset.attrs[schema.NOT_PREDICTED] = json.dumps(unknown, ensure_ascii=False)
    return schema.validate(schema.annotate(dataset))


def _add(
    sentences: dict[str, list[str]], name: str, found: Sequence[str], snapshot: Snapshot, snapshots: Sequence[Snapshot]
) -> None:
    where = f"step {snapshot.step}: " if len(snapshots) > 1 else ""
    sentences.setdefault(name, []).extend(where + sentence for sentence in found)
