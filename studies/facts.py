"""Do the facts hold that follow from the definitions and that the papers do not state, and do the seed paper's tables?

1. W̃⊥ with k = rank is unbiased.  2. It is activity perturbation of the live units, where the next layer is as wide.
3. W̃^P is plain activity perturbation there.  4. In one pass for all layers the other layers' noise dominates.
Then variance, bias and covariance norm as Wang et al. (2025) define them, beside what their tables 2 and 5 print.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import tyro
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import fganalysis as fga
from fganalysis import plotting, store
from fganalysis.estimators import (
    ActivityPerturbation,
    Estimator,
    OrthogonalUpstream,
    PreconditionedUpstream,
    Upstream,
)
from fganalysis.moments import Z95
from fganalysis.snapshot import Snapshot
from theory import upstream

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
HIDDEN = ["0", "2", "4"]  # The taps of layers 1, 2 and 3.
METRICS = ("variance", "bias", "covariance_norm")
SAME_LAW: dict[str, Estimator] = {
    "W̃⊥, k = rank": OrthogonalUpstream(k="rank"),
    "activity, live units": ActivityPerturbation(active_only=True),
    "W̃⊥, k = 10": OrthogonalUpstream(k=10),
    "W̃^P": PreconditionedUpstream(),
    "activity": ActivityPerturbation(),
}
QUOTED = (290.0, 47.0, 7.5)  # MATH.md §8: one draw of the initial weights.
# At default initialisation a step back through a layer leaves 1/6 of the squared gradient, whatever the width.
EXPECTED = (1 + 6 + 36 + 216, 1 + 6 + 36, 1 + 6)
# guess → estimator, then what is printed: variance, bias, covariance norm (none in table 5).
TABLE_2: dict[str, tuple[Estimator, tuple[float, float, float]]] = {
    "W̃ᵀ": (Upstream(), (1.50e-4, 2.75e-4, 0.084)),
    "W̃⊥, bottom 10": (OrthogonalUpstream(k=10, which="bottom"), (1.30e-5, 2.83e-4, 0.085)),
    "W̃⊥": (OrthogonalUpstream(k=10), (1.03e-5, 2.86e-5, 0.085)),
}
TABLE_5: dict[str, tuple[Estimator, tuple[float, float, float]]] = {
    "W̃⊥": (OrthogonalUpstream(k=10), (6.33e-6, 3.63e-5, np.nan)),
    "W̃^P": (PreconditionedUpstream(), (1.75e-4, 1.35e-8, np.nan)),
    "W̃ᵀ": (Upstream(), (7.04e-5, 1.68e-4, np.nan)),
}


@dataclass(frozen=True)
class Settings:
    """On the seed paper's MLP (40-w-w-w-10, no biases) and MNIST-1D."""

    width: int = 128
    """Width of the hidden layers for the facts and for table 2."""
    guesses: int = 512
    """Guesses drawn of each estimator."""
    examples: int = 32
    """Examples in the batch for the facts."""
    seeds: int = 8
    """Initial weights for fact 4."""
    batch: int = 512
    """Examples in the batch for the tables."""
    table_2_epochs: int = 110
    """Epochs of backpropagation before table 2, which leaves layer and epoch unsaid: here layer 1 comes closest."""
    table_5_width: int = 256
    """Width of the hidden layers for table 5."""
    table_5_epochs: int = 60
    """Epochs of backpropagation before table 5; the paper has 300 of training by each guess itself."""
    seed: int = 0
    """Seed of weights, batches and noise."""
    out: Path = Path("results/facts")
    """Where results and the figure go; what is finished there is not computed again."""


def main(settings: Settings) -> None:
    same_law = _cell(settings, "same_law", _same_law)
    joint_pass = _cell(settings, "joint_pass", _joint_pass)
    tables = [_cell(settings, "table_2", _table_2), _cell(settings, "table_5", _table_5)]
    _draw(same_law, joint_pass, tables, settings.out / "facts.png")
    _print_same_law(same_law)
    _print_joint_pass(joint_pass)
    for number, table in zip((2, 5), tables, strict=True):
        _print_table(number, table)
    print(f"\nResults and figure are in {settings.out}")


def _cell(settings: Settings, name: str, make: Callable[[Settings], xr.Dataset]) -> xr.Dataset:
    """One part of the answer: read where it is finished with these settings, otherwise computed and written."""
    path = settings.out / f"{name}.nc"
    chosen = {key: value for key, value in dataclasses.asdict(settings).items() if key != "out"}
    described = json.dumps(chosen, sort_keys=True)
    if path.exists():
        kept = store.read(path).to_dataset()
        if kept.attrs.get("study_settings") == described:
            print(f"{name} is finished: {path}")
            return kept
    dataset = make(settings)
    dataset.attrs["study_settings"] = described
    store.write(dataset, path)
    return dataset


def _snapshot(width: int, seed: int, inputs: Tensor, targets: Tensor) -> Snapshot:
    network = fga.networks.mlp([40, width, width, width, 10], bias=False, seed=seed, dtype=inputs.dtype)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets)


def _same_law(settings: Settings) -> xr.Dataset:
    """Facts 1–3 at initialisation, in double precision, over (guess_kind, layer) in activation space."""
    data = fga.datasets.load("mnist1d")
    inputs, targets = data.train_inputs[: settings.examples].double(), data.train_targets[: settings.examples]
    snapshot = _snapshot(settings.width, settings.seed, inputs, targets)
    tree = fga.diagnose(snapshot, list(SAME_LAW.values()), settings.guesses, settings.seed)
    where = {"space": "activation", "layer": HIDDEN, "step": 0}
    measured, predicted = (tree[node].to_dataset().sel(where, drop=True) for node in ("measured", "predicted"))
    squares = measured["gradient_norm"] ** 2
    variables = {}
    for name, source, scale in (("relative_bias", "relative_bias", 1.0), ("relative_variance", "variance", squares)):
        variables[name] = measured[source] / scale
        variables[name + "_se"] = measured[source + "_se"] / scale
        variables[name + "_predicted"] = predicted[source] / scale
    distances = np.array([_distances(snapshot, estimator) for estimator in SAME_LAW.values()])
    variables["covariance_distance"] = xr.DataArray(distances, dims=("estimator", "layer"))
    dataset = xr.Dataset(variables).drop_vars("estimator").rename(estimator="guess_kind")
    return _described(
        dataset.assign_coords(guess_kind=list(SAME_LAW)),
        {
            "relative_bias": "norm of the bias over norm of the gradient",
            "relative_variance": "total variance of one guess over squared norm of the gradient",
            "covariance_distance": "largest element of Sigma - M (orthogonal) or Sigma - I (preconditioned)",
        },
    )


def _distances(snapshot: Snapshot, estimator: Estimator) -> list[float]:
    """The largest |Σ − M| for k = rank and |Σ − I| for W̃^P, a number a layer; NaN for the others."""
    distances = []
    for jacobian in snapshot.upstream:
        weight, derivative = (array.double().numpy() for array in (jacobian.weight, jacobian.derivative))
        identity = np.eye(derivative.shape[1])
        if estimator == SAME_LAW["W̃⊥, k = rank"]:
            left = upstream.orthogonal(weight, derivative, "rank").left
            difference = left @ left.transpose(0, 2, 1) - identity * (derivative != 0)[:, None, :]
        elif estimator == SAME_LAW["W̃^P"]:
            left = upstream.preconditioned(weight, derivative).array
            difference = left @ left.transpose(0, 2, 1) - identity
        else:
            difference = np.full(1, np.nan)
        distances.append(float(np.abs(difference).max()))
    return distances


def _joint_pass(settings: Settings) -> xr.Dataset:
    """Fact 4: variance with one pass for all layers over that with a pass a layer, (inputs, seed, layer)."""
    data, kinds = fga.datasets.load("mnist1d"), ["gaussian", "mnist1d"]
    found = np.empty((3, len(kinds), settings.seeds, len(HIDDEN)))
    for index, seed in np.ndindex(len(kinds), settings.seeds):
        generator = torch.Generator().manual_seed(settings.seed + seed)
        if kinds[index] == "gaussian":
            inputs = torch.randn(settings.examples, 40, generator=generator)
            targets = torch.randint(0, 10, (settings.examples,), generator=generator)
        else:
            rows = torch.randperm(len(data.train_inputs), generator=generator)[: settings.examples]
            inputs, targets = data.train_inputs[rows], data.train_targets[rows]
        snapshot = _snapshot(settings.width, settings.seed + seed, inputs, targets)
        joint, separate = ActivityPerturbation(), ActivityPerturbation(layers="separate")
        predicted = [fga.predict(snapshot, one)["variance"] for one in (joint, separate)]
        found[0, index, seed] = _in_hidden(predicted[0] / predicted[1])
        samples = [fga.sample(snapshot, one, settings.guesses, settings.seed) for one in (joint, separate)]
        ratio = samples[0]["variance"] / samples[1]["variance"]
        squared = [(one["variance_se"] / one["variance"]) ** 2 for one in samples]
        found[1, index, seed] = _in_hidden(ratio)
        found[2, index, seed] = _in_hidden(ratio * (squared[0] + squared[1]) ** 0.5)
    dims = ("inputs", "seed", "layer")
    dataset = xr.Dataset(
        {name: (dims, values) for name, values in zip(("ratio_predicted", "ratio", "ratio_se"), found, strict=True)},
        coords={"inputs": kinds, "seed": settings.seed + np.arange(settings.seeds), "layer": HIDDEN},
    )
    return _described(dataset, {"ratio": "variance in a joint pass over variance in a pass of the layer's own"})


def _in_hidden(array: xr.DataArray) -> Array:
    return array.sel(space="activation", layer=HIDDEN).to_numpy()


def _table_2(settings: Settings) -> xr.Dataset:
    return _table(settings, TABLE_2, settings.width, settings.table_2_epochs)


def _table_5(settings: Settings) -> xr.Dataset:
    return _table(settings, TABLE_5, settings.table_5_width, settings.table_5_epochs)


def _table(
    settings: Settings, table: dict[str, tuple[Estimator, tuple[float, float, float]]], width: int, epochs: int
) -> xr.Dataset:
    """The paper's metrics over (guess_kind, layer), predicted and measured, and those printed over (guess_kind)."""
    data = fga.datasets.load("mnist1d")
    network = fga.networks.mlp([40, width, width, width, 10], bias=False, seed=settings.seed)
    run = fga.train(network, data, epochs=epochs, seed=settings.seed, log_every=10**6, progress=True)
    inputs, targets = data.train_inputs[: settings.batch], data.train_targets[: settings.batch]
    snapshot = fga.capture(run.network, torch.nn.functional.cross_entropy, inputs, targets)
    rows = []
    for name, (estimator, printed) in tqdm(table.items(), desc=f"width {width}", unit="guess"):
        sampled = fga.sample(snapshot, estimator, settings.guesses, settings.seed)
        # Fact 3 spares W̃^P's prediction the SVD of every example, below layer 3 with its ten units above.
        same = ActivityPerturbation() if isinstance(estimator, PreconditionedUpstream) else estimator
        measured, predicted = (
            one.sel(layer=HIDDEN).drop_vars("estimator") for one in (sampled, fga.predict(snapshot, same))
        )
        known = xr.ones_like(predicted["wang2025_bias"]) * ([1, 1, np.nan] if same is not estimator else 1)
        variables = {}
        for metric, value in zip(METRICS, printed, strict=True):
            source = f"wang2025_{metric}"
            variables[f"{metric}_predicted"] = predicted[source] * known
            variables[f"{metric}_printed"] = xr.DataArray(value)
            if source in measured:
                variables[metric] = measured[source]
                variables[f"{metric}_se"] = measured[f"{source}_se"]
        rows.append(xr.Dataset(variables).expand_dims(guess_kind=[name]))
    described = {metric: fga.schema.variables()[f"wang2025_{metric}"].long_name for metric in METRICS}
    dataset = _described(xr.concat(rows, dim="guess_kind", data_vars="all"), described)
    dataset.attrs |= {"width": width, "epochs": epochs, "train_accuracy": float(run.log["train_accuracy"][-1])}
    return dataset


def _described(dataset: xr.Dataset, names: dict[str, str]) -> xr.Dataset:
    """Gives every variable the long name of its quantity and its units."""
    units = {"variance": fga.schema.SQUARED_UNITS, "bias": fga.schema.GRADIENT_UNITS}
    kinds = {"_se": "standard error of: ", "_predicted": "predicted: ", "_printed": "printed by Wang et al. 2025: "}
    for name, array in dataset.data_vars.items():
        suffix = next((suffix for suffix in kinds if str(name).endswith(suffix)), "")
        quantity = str(name).removesuffix(suffix)
        array.attrs = {"units": units.get(quantity, "1"), "long_name": kinds.get(suffix, "") + names[quantity]}
    return dataset


def _draw(same_law: xr.Dataset, joint_pass: xr.Dataset, tables: Sequence[xr.Dataset], path: Path) -> None:
    import matplotlib.pyplot as plt
    import seaborn

    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, grid = plt.subplots(2, 2, figsize=(9.5, 6.4), layout="constrained")
    colours = seaborn.color_palette("colorblind")
    first, second, third, fourth = grid.flat
    for index, name in enumerate(SAME_LAW):
        own = same_law.sel(guess_kind=name)
        places = np.arange(len(HIDDEN)) + 0.14 * (index - 2)
        _points(first, places, own, "relative_variance", colours[index], name)
    first.set_xticks(range(len(HIDDEN)), ["layer 1", "layer 2", "layer 3"])
    first.set(
        yscale="log", ylabel="total variance / squared gradient norm", title="Facts 2, 3: same law, same variance"
    )
    for index, kind in enumerate(joint_pass["inputs"].to_numpy()):
        own = joint_pass.sel(inputs=kind)
        for place in range(len(HIDDEN)):
            part = own.isel(layer=place)
            places = place + 0.2 * (index - 0.5) + np.linspace(-0.08, 0.08, part.sizes["seed"])
            _points(
                second, places, part, "ratio", colours[index], f"{kind} inputs, initial weights 1 … n" * (not place)
            )
    second.plot(range(len(HIDDEN)), EXPECTED, "_", color="black", ms=40, label="1 + 6 + 36 + …")
    second.set_xticks(range(len(HIDDEN)), ["layer 1", "layer 2", "layer 3"])
    second.set(yscale="log", ylabel="variance, joint pass / own pass", title="Fact 4: the other layers' noise")
    for axes, metric in ((third, "variance"), (fourth, "bias")):
        names: list[str] = []
        for number, table, colour in zip((2, 5), tables, colours, strict=False):
            places = len(names) + np.arange(table.sizes["guess_kind"], dtype=float)
            own = table.sel(layer=HIDDEN[0])
            _points(axes, places, own, metric, colour, f"table {number}: width {table.attrs['width']}, measured")
            axes.plot(
                places, own[f"{metric}_printed"], "s", mfc="none", ms=9, color=colour, label=f"table {number}: printed"
            )
            names += map(str, table["guess_kind"].to_numpy())
        axes.set_xticks(range(len(names)), names, rotation=20)
        unit = "(loss per unit of activation)²" if metric == "variance" else "loss per unit of activation"
        axes.set(yscale="log", ylabel=f"{metric} as in the paper\n({unit})", title=f"Tables 2 and 5: {metric}, layer 1")
    fourth.set_ylim(bottom=3e-9)
    for axes in grid.flat:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    plotting.save(figure, path)


def _points(axes: Axes, places: NDArray[Any], own: xr.Dataset, name: str, colour: tuple, text: str) -> None:
    """Measured numbers with 95 % intervals, and a cross for each prediction."""
    values, errors = own[name].to_numpy(), Z95 * own[f"{name}_se"].to_numpy()
    # Down to a tenth of the value: a logarithmic axis has no zero.
    bars = [np.minimum(errors, 0.9 * values), errors]
    axes.errorbar(places, values, yerr=bars, fmt="o", ms=4, color=colour, label=text or None, lw=1)
    axes.plot(places, own[f"{name}_predicted"], "x", ms=5, color="black", zorder=4)


def _print_same_law(dataset: xr.Dataset) -> None:
    print("\nFacts 1–3 at initialisation, activation space: measured ± standard error | predicted")
    print(f"{'guess':>22} {'layer':>5} {'relative bias':>28} {'variance / ‖g‖²':>28} {'max |Σ − M or I|':>17}")
    for name in SAME_LAW:
        for number, layer in enumerate(HIDDEN, 1):
            own = dataset.sel(guess_kind=name, layer=layer)
            cells = [_cell_text(own, quantity) for quantity in ("relative_bias", "relative_variance")]
            distance = float(own["covariance_distance"])
            shown = "" if np.isnan(distance) else f"{distance:.1e}"
            print(f"{name:>22} {number:>5} {cells[0]:>28} {cells[1]:>28} {shown:>17}")
    print(
        "Fact 1: no bias at k = rank. Facts 2, 3: the same variance as the activity guess named beside, layers 1 and 2."
    )


def _print_joint_pass(dataset: xr.Dataset) -> None:
    n_seeds = dataset.sizes["seed"]
    print(f"\nFact 4, variance in a joint pass / in a pass of the layer's own, over {n_seeds} initial weights:")
    print(f"{'inputs':>9} {'layer':>5} {'predicted, mean ± sd':>21} {'largest |z|':>11} {'1+6+36+…':>9} {'MATH.md':>8}")
    z = abs(dataset["ratio"] - dataset["ratio_predicted"]) / dataset["ratio_se"]
    for kind in dataset["inputs"].to_numpy():
        for index, layer in enumerate(HIDDEN):
            own = dataset["ratio_predicted"].sel(inputs=kind, layer=layer)
            text = f"{float(own.mean()):.1f} ± {float(own.std()):.1f}"
            largest = float(z.sel(inputs=kind, layer=layer).max())
            print(f"{kind:>9} {index + 1:>5} {text:>21} {largest:>11.2f} {EXPECTED[index]:>9} {QUOTED[index]:>8}")


def _print_table(number: int, table: xr.Dataset) -> None:
    attributes = table.attrs
    print(
        f"\nTable {number}, layer 1, width {attributes['width']}, after {attributes['epochs']} epochs of "
        f"backpropagation (training accuracy {attributes['train_accuracy']:.3f}):"
    )
    print(f"{'guess':>14} {'metric':>15} {'measured ± se | predicted':>32} {'printed':>9} {'ours / printed':>14}")
    for name in table["guess_kind"].to_numpy():
        own = table.sel(guess_kind=name, layer=HIDDEN[0])
        for metric in METRICS:
            printed, predicted = float(own[f"{metric}_printed"]), float(own[f"{metric}_predicted"])
            ratio = "" if np.isnan(printed) else f"{predicted / printed:.2g}"
            shown = "" if np.isnan(printed) else f"{printed:.3g}"
            text = _cell_text(own, metric) if metric in own else f"{predicted:.4g}"
            print(f"{name:>14} {metric:>15} {text:>32} {shown:>9} {ratio:>14}")


def _cell_text(own: xr.Dataset, name: str) -> str:
    predicted = float(own[f"{name}_predicted"])
    shown = "0" if predicted < 1e-12 else f"{predicted:.3g}"
    return f"{float(own[name]):.3g} ± {float(own[f'{name}_se']):.1g} | {shown}"


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
