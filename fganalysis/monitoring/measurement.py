"""One measurement on a network in training: fills a row, part by part, as far as it comes.

It is made on a view of the network, in evaluation mode (`fganalysis.monitoring.view`). What a first batch shows of the
network is checked once, as in training loops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fganalysis.capturing import refusals
from fganalysis.capturing.batch import first_examples, map_tensors
from fganalysis.capturing.capture import checked_view, freeze
from fganalysis.capturing.planning import Plan
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Loss
from fganalysis.estimators import Estimator
from fganalysis.estimators.noise import is_isotropic
from fganalysis.estimators.tangents_of_weights import tangents_of
from fganalysis.measuring.joining import in_a_sentence
from fganalysis.measuring.sample import sample
from fganalysis.monitoring.budget import Clock
from fganalysis.monitoring.given_gradient import Comparison, GivenGradient, compared, several_processes
from fganalysis.monitoring.noise_scale import noise_of_parts, some_examples
from fganalysis.monitoring.rows import KEPT_QUANTITIES, NOISE, OF_ESTIMATOR, Row
from fganalysis.monitoring.view import evaluated_view
from fganalysis.predictions import predict
from fganalysis.results import schema
from fganalysis.training.estimated_gradients import EXAMPLES_CHECKED

ENOUGH_FOR_GROUPS = 49  # Three groups of 16 guesses, and one more.
GRADIENT = ".grad"  # Beside the labels of estimators in `not_measured`.


@dataclass
class Times:
    """Seconds of a measurement that went into what is done once for all measurements, and into guesses."""

    setting_up: float = 0.0
    guesses: float = 0.0


@dataclass(frozen=True)
class Measurement:
    """What is measured of a network, and how; the fields are arguments of `fganalysis.Monitor`.

    estimators: by label. plans: what is known of the network, by what may change it.
    """

    network: torch.nn.Module
    loss_fn: Loss
    estimators: Mapping[str, Estimator]
    layers: bool
    predictions: bool
    examples: int | None
    seed: int
    clock: Clock
    plans: dict[tuple[object, ...], Plan] = field(default_factory=dict)

    def fill(self, row: Row, inputs: Any, targets: Any, n_guesses: int, given: GivenGradient, times: Times) -> None:
        """Fills the row of a step."""
        inputs, targets = (map_tensors(part, lambda t: t.detach().clone()) for part in (inputs, targets))
        view = evaluated_view(self.network)
        snapshot = self._frozen(view, inputs, targets, row.step, times)
        row.of_step |= {"loss": float(snapshot.loss), "n_examples": float(snapshot.n_examples)}
        refusals.refuse_zero_gradient(snapshot)
        exact, layers = _by_parameter(snapshot), [layer.parameter_names for layer in snapshot.weights]
        names = list(snapshot.layers) if self.layers else []
        row.layers = [schema.ALL_LAYERS, *names]
        shown = layers if self.layers else []
        self._add_comparison(row, exact, shown, given)
        self._add_noise_scale(row, view, (inputs, targets), snapshot, exact, shown)
        if not self.estimators:
            return
        try:
            part = self._part(view, (inputs, targets), snapshot, times)
        except Exception as error:
            row.reasons |= dict.fromkeys(self.estimators, f"on a part of the batch: {in_a_sentence(error)}")
            return
        row.of_step["n_examples_of_guesses"] = float(part.n_examples)
        for name, estimator in self.estimators.items():
            self._add_estimator(row, part, name, estimator, n_guesses, times)

    def _frozen(self, view: torch.nn.Module, inputs: Any, targets: Any, step: int, times: Times) -> Snapshot:
        """The batch on the view; what it was found to be is checked once, as in training loops."""
        n_examples = refusals.n_examples(inputs, targets)
        trained = tuple(parameter.requires_grad for parameter in view.parameters())
        key = (n_examples == 1, trained)
        if key not in self.plans:
            start = self.clock()
            part = first_examples((inputs, targets), n_examples, EXAMPLES_CHECKED) or (inputs, targets)
            self.plans[key] = checked_view(view, self.network, self.loss_fn, *part).plan
            times.setting_up += self.clock() - start
        plan = self.plans[key]
        snapshot = freeze(view, self.loss_fn, inputs, targets, autodiff="reverse", step=step, plan=plan)
        refusals.refuse_infinite_loss(snapshot.loss)
        return snapshot

    def _part(self, view: torch.nn.Module, batch: tuple[Any, Any], whole: Snapshot, times: Times) -> Snapshot:
        """The first examples of the batch, which guesses are made on; the whole batch where all are wanted."""
        if self.examples is None or self.examples >= whole.n_examples:
            return whole
        inputs, targets = (some_examples(part, whole.n_examples, 0, self.examples) for part in batch)
        part = self._frozen(view, inputs, targets, whole.step, times)
        refusals.refuse_zero_gradient(part)
        return part

    def _add_comparison(
        self, row: Row, exact: Mapping[str, torch.Tensor], layers: Sequence[Sequence[str]], given: GivenGradient
    ) -> None:
        """Cosine and relative error of ``.grad``."""
        reason = given.no_comparison or several_processes()
        try:
            if reason:
                found = Comparison.missing(len(layers) + 1, reason)
            else:
                found = compared(self.network, exact, layers, given.scaler)
        except Exception as error:
            found = Comparison.missing(len(layers) + 1, in_a_sentence(error))
        row.of_layer |= {"grad_cosine": found.cosine.tolist(), "grad_relative_error": found.relative_error.tolist()}
        if found.reason:
            row.reasons[GRADIENT] = found.reason

    def _add_noise_scale(
        self,
        row: Row,
        view: torch.nn.Module,
        batch: tuple[Any, Any],
        snapshot: Snapshot,
        exact: Mapping[str, torch.Tensor],
        layers: Sequence[Sequence[str]],
    ) -> None:
        try:
            noise = noise_of_parts(view, self.loss_fn, batch, snapshot.n_examples, exact, layers)
        except Exception as error:
            row.reasons[NOISE] = in_a_sentence(error)
            return
        row.of_layer |= {
            NOISE: noise.scale.tolist(),
            "example_variance": noise.example_variance.tolist(),
            "squared_mean_gradient": noise.squared_mean.tolist(),
        }
        if math.isnan(noise.scale[0]):
            row.reasons[NOISE] = "the batch is too small to tell the squared gradient from its noise"

    def _add_estimator(
        self, row: Row, snapshot: Snapshot, name: str, estimator: Estimator, n_guesses: int, times: Times
    ) -> None:
        """What is measured of an estimator, and predicted."""
        start = self.clock()
        found: dict[str, np.ndarray] = {}
        try:
            measured = sample(snapshot, estimator, n_guesses, self.seed, by_law=has_a_law(estimator))
            found |= {name: measured.variables[name].values for name in OF_ESTIMATOR if name in measured.variables}
            row.n_guesses[name] = n_guesses
            if n_guesses < ENOUGH_FOR_GROUPS and np.isnan(found["variance"]).all():
                row.reasons[f"{name}, bias and variance"] = (
                    f"{n_guesses} guesses make too few groups, of which bias and variance take four: "
                    f"{ENOUGH_FOR_GROUPS} are enough"
                )
        except Exception as error:
            row.reasons[name] = in_a_sentence(error)
        wait_for(snapshot.device)
        times.guesses += self.clock() - start
        if self.predictions and found:
            try:
                predicted = predict(snapshot, estimator)
                found |= {q + schema.PREDICTED: predicted.variables[q].values for q in KEPT_QUANTITIES}
            except Exception as error:
                row.reasons[f"{name}, predicted"] = in_a_sentence(error)
        if found:
            # The layers of a sample, all of them last: by arrays, as choosing in xarray takes longer than the guesses.
            order = [-1, *range(len(row.layers) - 1)]
            row.of_estimator[name] = {variable: values[:, order].tolist() for variable, values in found.items()}


def has_a_law(estimator: Estimator) -> bool:
    """Whether the guesses of an estimator can be drawn by their law exactly."""
    law = tangents_of(estimator)
    return law is not None and is_isotropic(law.noise) and law.slope == "derivative"


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was told, so that times are of work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _by_parameter(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """The exact gradient by the names of the network's parameters."""
    exact: dict[str, torch.Tensor] = {}
    for layer, gradient in zip(snapshot.weights, snapshot.weight_gradients, strict=True):
        exact |= layer.by_parameter(gradient)
    return exact
