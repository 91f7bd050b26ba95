"""Every dimension, variable and unit name of a result: the only place where they are spelled."""

from __future__ import annotations

from dataclasses import dataclass

import xarray as xr

from fganalysis.arguments import check_kind, listed

STEP, ESTIMATOR, SPACE, LAYER = "step", "estimator", "space", "layer"
GUESS, EXAMPLE, UNIT, MODE, GROUP, OTHER_GROUP = "guess", "example", "unit", "mode", "group", "other_group"
MATRIX, AVERAGED = "matrix", "averaged"

SPACES = ("activation", "weight")  # Of a network.
PARAMETER = "parameter"  # The only space of gradients without a network.
MATRICES = ("activation_gradient", "layer_input", "weight_gradient", "upstream_jacobian")
ALL_LAYERS = "all"
SE = "_se"
LOW, HIGH, WIDE, SHORT, TAIL = "_low", "_high", "_wide", "_short", "_tail"
# Attributes, JSON: parameters that are in no layer (a list), and why an estimator has no numbers (by its label).
NOT_LOOKED_AT, NOT_MEASURED, NOT_PREDICTED = "not_looked_at", "not_measured", "not_predicted"
# Attributes of guesses drawn by their law: 1; variables that there are not (JSON); the limit in which the law holds.
BY_LAW, METRICS_LEFT_OUT, LIMIT = "by_law", "metrics_left_out", "limit"
# Attributes of gradients without a network, text and number: whether the truth is exact or an estimate, and the root
# of its mean squared error over its squared norm.
TRUTH, TRUTH_ERROR = "truth", "relative_truth_error"
# Attribute, text: how many groups of guesses there are, where there would be more if the memory held them.
FEWER_GROUPS = "fewer_groups"


@dataclass(frozen=True)
class Variable:
    """Name and unit of one reported variable; ``dims`` are the ones it always has beside step and estimator."""

    long_name: str
    units: str
    dims: tuple[str, ...] = (SPACE, LAYER)


GRADIENT_UNITS = "loss per unit of the space"
SQUARED_UNITS = "(loss per unit of the space)^2"

# `fganalysis.register_metric` adds to QUANTITIES, EXACT and ALSO_COMPARED: read them when they are needed, not once at
# import.

# Estimated quantities: each has beside it, under the same name, its standard error (`_se`), the bounds of its 95 %
# interval (`_low`, `_high`), whether that is wide, so that it may cover far more than 95 % (`_wide`, 1 or 0), and
# whether it may be too short, as what is averaged may have no variance (`_short`, 1 or 0).
QUANTITIES: dict[str, Variable] = {
    "bias": Variable("norm of the bias", GRADIENT_UNITS),
    "squared_bias": Variable("squared norm of the bias, unbiased U-statistic (may be negative)", SQUARED_UNITS),
    "relative_bias": Variable("norm of the bias over norm of the gradient", "1"),
    "shrinkage": Variable("inner product of the mean guess with the gradient over its squared norm", "1"),
    "directional_bias": Variable("1 - squared cosine of the mean guess with the gradient", "1"),
    "variance": Variable("total variance of one guess", SQUARED_UNITS),
    "mse": Variable("mean squared error of one guess", SQUARED_UNITS),
    "cosine": Variable("mean cosine of a guess with the gradient", "1"),
    "efficiency": Variable("fraction of the exact step's progress at the best step size", "1"),
    "best_scale": Variable("scale of a guess that minimises its mean squared error", "1"),
    "descent_probability": Variable("probability that a guess has a positive inner product with the gradient", "1"),
}

# What stands beside each of them under its name.
BESIDE = (SE, LOW, HIGH, WIDE, SHORT)

# Those of registered metrics that are compared with their predictions, wherever a result has them.
ALSO_COMPARED: list[str] = []

# Quantities with a tail, whose shape k̂ is also reported (`_tail`): an interval is marked as short from k̂ = 1/2 on.
# All norms of mean guesses have that of `bias`.
TAILED = ("bias", "shrinkage", "variance", "mse", "cosine", "efficiency", "best_scale")

# Exact quantities and raw material: no standard error.
EXACT: dict[str, Variable] = {
    "gradient_norm": Variable("norm of the exact gradient", GRADIENT_UNITS),
}
RAW = {
    "inner_product": Variable("inner product of a guess with the gradient", SQUARED_UNITS, (SPACE, LAYER, GUESS)),
    "squared_norm": Variable("squared norm of a guess", SQUARED_UNITS, (SPACE, LAYER, GUESS)),
    "gram": Variable(
        "inner products between group means of the error of a guess", SQUARED_UNITS, (SPACE, LAYER, GROUP, OTHER_GROUP)
    ),
    "group_size": Variable("number of guesses in a group", "1", (GROUP,)),
}
COSINE_QUANTILES = {"cosine_q05": 0.05, "cosine_q25": 0.25, "cosine_q50": 0.5, "cosine_q75": 0.75, "cosine_q95": 0.95}
QUANTILES = {
    name: Variable(f"{level:.0%} quantile over guesses of the cosine", "1") for name, level in COSINE_QUANTILES.items()
}

ROUND, PRECISION, SCHEME, STEP_LENGTH = "round", "precision", "scheme", "epsilon"
# `fganalysis.cost`: an interval without a standard error, as that of a median.
TIMES = {
    "seconds": Variable("median wall time of one training step", "s", (AVERAGED,)),
    "relative_seconds": Variable("median of that time over backpropagation's in the same round", "1", (AVERAGED,)),
}
COST = TIMES | {
    "seconds_of_rounds": Variable("wall time of one training step", "s", (AVERAGED, ROUND)),
    "peak_memory": Variable("most memory that a step holds above what it starts with", "B", (AVERAGED,)),
    "relative_peak_memory": Variable("that memory over backpropagation's", "1", (AVERAGED,)),
    "forward_passes": Variable("forward passes over the batch of one step, stated", "1", (AVERAGED,)),
    "tangent_passes": Variable("tangents of forward passes over the batch of one step, stated", "1", (AVERAGED,)),
    "backward_passes": Variable("backward passes over the batch of one step, stated", "1", (AVERAGED,)),
    "layer_products": Variable("products of every layer by itself of one step, stated", "1", (AVERAGED,)),
    "passes": Variable("all passes of one step, stated, in units of a forward pass", "1", (AVERAGED,)),
    "relative_passes": Variable("those passes over backpropagation's", "1", (AVERAGED,)),
}

# `fganalysis.progress_per_cost`: without a standard error too.
PROGRESS_PER_COST = {
    "progress_per_pass": Variable("curved efficiency over stated passes, both over backpropagation's", "1", ()),
    "progress_per_second": Variable("curved efficiency over time, both over backpropagation's", "1", ()),
}

# `fganalysis.difference_step`: the first group with intervals without a standard error.
DIFFERENCES = {
    "second_derivative": Variable("root mean square of the second derivative along z", "loss", ()),
    "third_derivative": Variable("root mean square of the third derivative along z", "loss", ()),
    "mean_error": Variable("shrinkage of the guess less 1, by truncation", "1", (STEP_LENGTH,)),
    "loss_rounding": Variable("root mean square of the rounding error of a loss", "loss", (PRECISION, SCHEME)),
    "best_epsilon": Variable("step of the least slope error", "unit of weight", (PRECISION, SCHEME)),
    "least_slope_error": Variable("slope error at the best step over the gradient norm", "1", (PRECISION, SCHEME)),
    "slope_error_there": Variable("measured slope error over the gradient norm", "1", (PRECISION, SCHEME)),
    "truncation_ratio": Variable("measured truncation error over that of the derivatives", "1", (PRECISION, SCHEME)),
}
BY_STEP_LENGTH = (PRECISION, SCHEME, STEP_LENGTH)
DIFFERENCE_CURVES = {
    "epsilon_there": Variable("step of what was measured", "unit of weight", (PRECISION, SCHEME)),
    "kinks": Variable("1 if kinks make the truncation error, 0 if derivatives do", "1", (PRECISION, SCHEME)),
    "slope_truncation": Variable("truncation error of a slope over the gradient norm", "1", BY_STEP_LENGTH),
    "slope_rounding": Variable("rounding error of a slope over the gradient norm", "1", BY_STEP_LENGTH),
    "slope_error": Variable("error of a slope over the gradient norm", "1", BY_STEP_LENGTH),
    "drift": Variable("what perturbing in place leaves, over the norm of the weights", "1", (PRECISION, STEP_LENGTH)),
    "unmoved": Variable("share of weights that a step leaves as they are", "1", (PRECISION, STEP_LENGTH)),
}

# /subspace: what `fganalysis.measuring.spectra` measures and what theory makes of it. Everything is exact for the
# batch; the overlap's standard error is that of its mean over examples.
ENERGY_SHARES = {"modes_for_90": 0.9, "modes_for_95": 0.95, "modes_for_99": 0.99}
RANKS = {
    "stable_rank": Variable("sum of squared singular values over the largest squared", "1", (MATRIX, LAYER)),
    "entropy_rank": Variable("exponential of the entropy of the shares of energy", "1", (MATRIX, LAYER)),
    "participation_ratio": Variable("squared sum of energies over sum of squared energies", "1", (MATRIX, LAYER)),
    "srank": Variable("leading modes that hold 99% of the sum of singular values", "1", (MATRIX, LAYER)),
} | {
    name: Variable(f"leading modes that hold {share:.0%} of the energy", "1", (MATRIX, LAYER))
    for name, share in ENERGY_SHARES.items()
}
MODE_CURVES = {
    "singular_value": Variable("singular value", "unit of the matrix", (MATRIX, LAYER, MODE)),
    "energy": Variable("share of the energy in the leading modes", "1", (MATRIX, LAYER, MODE)),
}
BY_LAYER_AND_MODE = (LAYER, MODE)
OVERLAPS = {
    "overlap": Variable(
        "share of the squared gradient in the Jacobian's leading modes, example mean", "1", BY_LAYER_AND_MODE
    ),
    "overlap_se": Variable("standard error over examples of the overlap", "1", BY_LAYER_AND_MODE),
    "overlap_spread": Variable("standard deviation over examples of the overlap", "1", BY_LAYER_AND_MODE),
    "random_overlap": Variable("overlap with a random subspace of that size", "1", BY_LAYER_AND_MODE),
    "random_overlap_spread": Variable("standard deviation of the random overlap", "1", BY_LAYER_AND_MODE),
    "random_overlap_in_range": Variable(
        "overlap with a random subspace of the Jacobian's row space, example mean", "1", BY_LAYER_AND_MODE
    ),
}
STORY = {
    "kept_energy": Variable(
        "share of the batch's squared gradient in the leading modes, the output tap's whole", "1", BY_LAYER_AND_MODE
    ),
    "orthogonal_bias": Variable(
        "bias of the orthogonal upstream guess, k = mode", GRADIENT_UNITS, (SPACE, LAYER, MODE)
    ),
    "orthogonal_variance": Variable(
        "total variance of the orthogonal upstream guess, k = mode", SQUARED_UNITS, (SPACE, LAYER, MODE)
    ),
    "orthogonal_efficiency": Variable(
        "efficiency of the orthogonal upstream guess, k = mode", "1", (SPACE, LAYER, MODE)
    ),
    "best_k": Variable("k of the most efficient orthogonal upstream guess, the same in every layer", "1"),
    "best_k_of_each_layer": Variable("k of each layer for the net's efficiency at the activations", "1", (LAYER,)),
    "upstream_bias": Variable("bias of the upstream guess", GRADIENT_UNITS),
    "upstream_variance": Variable("total variance of the upstream guess", SQUARED_UNITS),
    "upstream_efficiency": Variable("efficiency of the upstream guess", "1"),
}

# `fganalysis.progress`: H is the curvature of the loss in the weights, its Hessian or the Gauss–Newton matrix, g the
# gradient there, η a step size. These are estimated, as the QUANTITIES above; along ``averaged``, of the mean of so
# many guesses.
CURVATURE_UNITS, SLOPE_UNITS = "loss^3 per (unit of weight)^4", "(loss per unit of weight)^2"
STEP_UNITS, TRACE_UNITS = "(unit of weight)^2 per loss", "loss per (unit of weight)^2"
PROGRESS: dict[str, Variable] = {
    "slope_along": Variable("inner product of the mean guess with the gradient", SLOPE_UNITS, ()),
    "mean_curvature": Variable("curvature along the mean guess, unbiased over pairs of guesses", CURVATURE_UNITS, ()),
    "curvature_along": Variable("expected curvature along a guess", CURVATURE_UNITS, (AVERAGED,)),
    "best_step": Variable("step size of the largest expected decrease of the loss", STEP_UNITS, (AVERAGED,)),
    "expected_decrease": Variable("expected decrease of the loss by a best step, to second order", "loss", (AVERAGED,)),
    "curved_efficiency": Variable("expected decrease over that of a best step along the gradient", "1", (AVERAGED,)),
    "decrease_at_step": Variable("mean decrease of the loss by a best step, as it is", "loss", ()),
    "curvature_at_step": Variable("mean second difference of the loss over a best step", CURVATURE_UNITS, ()),
    "unseen_curvature": Variable(
        "second difference over a best step beyond the curvature, relative to it: kinks, higher derivatives", "1", ()
    ),
    "curvature_trace": Variable("trace of the curvature", TRACE_UNITS, (LAYER,)),
    "effective_rank": Variable("trace of the curvature over that along the direction of the gradient", "1", (LAYER,)),
}
PREDICTED = "_predicted"
PROGRESS_PREDICTED = (
    "slope_along",
    "mean_curvature",
    "curvature_along",
    "best_step",
    "expected_decrease",
    "curved_efficiency",
)
OF_NETWORK = {
    "squared_gradient": Variable("squared norm of the exact gradient", SLOPE_UNITS, (LAYER,)),
    "gradient_curvature": Variable("curvature along the exact gradient", CURVATURE_UNITS, (LAYER,)),
    "gradient_step": Variable("best step size along the exact gradient", STEP_UNITS, (LAYER,)),
    "gradient_decrease": Variable("decrease of the loss by it, to second order", "loss", (LAYER,)),
    "loss": Variable("loss of the batch", "loss", ()),
    "has_kinks": Variable("1 if the loss has kinks, which no curvature shows, 0 if none were found", "1", ()),
}
OF_GUESSES = {
    "step_known": Variable("1 if the intervals of slope and curvature are above zero, 0 if not", "1", (AVERAGED,)),
    "guess_slope": Variable("inner product of a guess with the gradient", SLOPE_UNITS, (GUESS,)),
    "guess_curvature": Variable("curvature along a guess", CURVATURE_UNITS, (GUESS,)),
    "guess_curvature_with_others": Variable(
        "product of a guess and the mean of the other guesses with the curvature", CURVATURE_UNITS, (GUESS,)
    ),
    "guess_decrease": Variable("decrease of the loss by a step along a guess", "loss", (GUESS,)),
    "guess_curvature_at_step": Variable("second difference of the loss along a guess", CURVATURE_UNITS, (GUESS,)),
}
# `fganalysis.Monitor`, besides quantities with their predictions. ``grad``: what `.grad` holds, whoever put it there.
MONITORED = {
    "gradient_noise_scale": Variable("batch size whose noise is as large as the gradient", "examples", (LAYER,)),
    "example_variance": Variable("total variance of the gradient of one example", SLOPE_UNITS, (LAYER,)),
    "squared_mean_gradient": Variable("squared norm of its mean over all examples", SLOPE_UNITS, (LAYER,)),
    "grad_cosine": Variable("cosine of what .grad holds with the exact gradient", "1", (LAYER,)),
    "grad_relative_error": Variable("norm of the error of .grad over that of the exact gradient", "1", (LAYER,)),
    "n_guesses": Variable("guesses of the measurement", "1", ()),
    "n_examples": Variable("examples in the batch", "1", ()),
    "n_examples_of_guesses": Variable("examples of the batch that the guesses were made on", "1", ()),
    "measuring_seconds": Variable("wall time of the measurement", "s", ()),
    "training_seconds": Variable("wall time of the training before it, without measurements", "s", ()),
    "skipped": Variable("measurements left out since the last one, as the budget did not allow them", "1", ()),
}
CURVATURE_KIND, CAUTIONS = (
    "curvature",
    "cautions",
)  # Attributes; cautions: JSON, sentences by label or "network".


def variables() -> dict[str, Variable]:
    """Every variable that a result may hold, standard errors, bounds and what is said of them included."""
    beside = {SE: "standard error of: ", LOW: "lower bound of: ", HIGH: "upper bound of: "}
    estimated = QUANTITIES | PROGRESS
    errors = {
        name + suffix: Variable(words + variable.long_name, variable.units, variable.dims)
        for name, variable in estimated.items()
        for suffix, words in beside.items()
    }
    flags = {WIDE: "1 if the interval is wide, 0 if not, of: ", SHORT: "1 if the interval may be short, 0 if not, of: "}
    errors |= {
        name + suffix: Variable(words + variable.long_name, "1", variable.dims)
        for name, variable in estimated.items()
        for suffix, words in flags.items()
    }
    predicted = {PREDICTED: "predicted: ", PREDICTED + SE: "error of the prediction, from the trace, of: "}
    errors |= {
        name + suffix: Variable(words + PROGRESS[name].long_name, PROGRESS[name].units, PROGRESS[name].dims)
        for name in PROGRESS_PREDICTED
        for suffix, words in predicted.items()
    }
    errors |= {
        name + PREDICTED: Variable("predicted: " + variable.long_name, variable.units, variable.dims)
        for name, variable in QUANTITIES.items()
    }
    errors |= {
        name + TAIL: Variable("k-hat of the tail of what is averaged in: " + QUANTITIES[name].long_name, "1")
        for name in TAILED
    }
    errors |= _of_steps()
    of_progress = PROGRESS | OF_NETWORK | OF_GUESSES | MONITORED
    of_subspace = RANKS | MODE_CURVES | OVERLAPS | STORY
    return QUANTITIES | errors | EXACT | RAW | QUANTILES | of_subspace | of_progress


def _of_steps() -> dict[str, Variable]:
    """What a step costs and which step suits a difference, with the bounds of what has an interval and no error."""
    bounds = {LOW: "lower bound of: ", HIGH: "upper bound of: "}
    bounded = TIMES | PROGRESS_PER_COST | DIFFERENCES
    found = COST | PROGRESS_PER_COST | DIFFERENCES | DIFFERENCE_CURVES
    found |= {
        name + suffix: Variable(words + variable.long_name, variable.units, variable.dims)
        for name, variable in bounded.items()
        for suffix, words in bounds.items()
    }
    wide = "1 if the interval is wide, 0 if not, of: "
    return found | {
        name + WIDE: Variable(wide + variable.long_name, "1", variable.dims) for name, variable in bounded.items()
    }


def annotate(dataset: xr.Dataset) -> xr.Dataset:
    """Gives every known variable its ``units`` and ``long_name``."""
    check_kind("dataset", dataset, xr.Dataset, "an xarray Dataset")
    known = variables()
    for name in dataset.data_vars:
        if name in known:
            described_by = known[str(name)]
            dataset.variables[name].attrs |= {"units": described_by.units, "long_name": described_by.long_name}
    return dataset


def validate(dataset: xr.Dataset) -> xr.Dataset:
    """Returns the dataset when its names, dimensions and units are those of this file.

    Raises:
        ValueError: naming the first variable that is unknown, lacks a dimension, its units or its standard error.
    """
    check_kind("dataset", dataset, xr.Dataset, "an xarray Dataset")
    known = variables()
    for name in dataset.data_vars:
        variable = dataset.variables[name]  # An array of the Dataset's would take thirty times as long.
        if name not in known:
            way_out = "register the metric that has it (fga.register_metric)"
            raise ValueError(f"unknown variable {name!r}: {way_out}, or use one of {listed(sorted(known), 8)}")
        missing = [dim for dim in known[str(name)].dims if dim not in variable.dims]
        if missing:
            raise ValueError(f"variable {name!r} lacks the dimension {missing[0]!r}")
        if "units" not in variable.attrs or "long_name" not in variable.attrs:
            raise ValueError(f"variable {name!r} lacks units or a long_name")
    return dataset
