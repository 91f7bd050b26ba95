"""The page and the figures of `studies.guess_target`, from its DataTree alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from studies.guess_target.cells import GUESSES, HEADS, HIDDEN, KINDS, NOISE, PROJECTIONS, TARGETS
from studies.kit.markdown import listed, table, verb
from studies.kit.seeds import Interval, half_widths, over_seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"gradient": "the gradient", "random": "noise", "live": "noise on live units"} | {
    f"{kind} {state}": f"{name} head, {word}"
    for kind, name in zip(KINDS, ("linear", "MLP", "CNN"), strict=True)
    for state, word in (("head", "trained"), ("frozen", "frozen"))
}
SIDES = ("better than", "worse than", "not told from")
SHOWN = {"cosine": "Cosine", "relative_bias": "Relative bias", "efficiency": "Efficiency"}


def page(tree: xr.DataTree) -> str:
    """docs/results/guess_target.md."""
    found, trained = tree["measured"].to_dataset(), tree["trained"].to_dataset()
    of = found.attrs
    weight = found.sel(space="weight", layer=HIDDEN)
    lines = [
        "# Does a guess from a local loss point along the gradient better than a random one?",
        "",
        "Written by `python -m studies.guess_target` from its Dataset: do not edit. MLPs 40-"
        f"{of['width']}-{of['width']}-{of['width']}-10 without biases on MNIST-1D, trained by backpropagation (Adam, "
        f"rate {of['rate']:g}, 512 examples a step), the auxiliary heads trained along by the same rule, each on its "
        f"own loss alone; measured on a batch of {of['batch']} training examples. {found.sizes['seed']} seeds; "
        "intervals are 95 % over them.",
        "",
        "An estimate is ⟨target, guess⟩ guess/‖guess‖². Target: the loss's gradient (global) or that "
        "of the tap's own trained head (local). Guess: the gradient itself, the gradient of a head (linear; MLP with "
        f"three hidden layers of {of['mlp_width']}; CNN of three convolutions with {of['cnn_channels']} channels over "
        "the units), trained along or frozen at a random start, or noise. Of noise and of the gradient the local "
        "target is the linear head's. Space of the projection: activation (a slope an example; noise independent "
        "across examples) or weight (one slope a tap for the batch; one noise matrix a tap). Layers separate: a pass a "
        "tap. The three hidden taps are taken as one vector; the output tap, where every estimate is exact, is left "
        "out. All numbers compare with the loss's gradient in weight space, whatever the space of the projection, "
        "unless said.",
        "",
        "![Cosine of every cell](guess_target_cosine.png)",
        "",
        "## The paper's claim",
        "",
        "Fournier et al. (2023): guesses from local losses are far better aligned with the gradient than random ones. "
        "The paper has no cosines to compare with (its code computes them and logs none), so the claim is held against "
        "the difference to noise, target global, same space, seed by seed.",
        "",
        *_in_short(weight),
        _claim(weight),
        "",
        *_verdict(weight, "random"),
        "A head's guess is zero on units that are dead (φ' = 0), as the gradient is, which is worth something by "
        "itself. Against noise on the live units alone (drawn at the activations, independent across examples, also "
        "where it is projected in weight space):",
        "",
        *_verdict(weight, "live"),
        *_slopes(weight, int(of["batch"])),
        "## Every cell",
        "",
    ]
    for name, title in SHOWN.items():
        lines += [f"### {title}", ""]
        for step in weight["step"].values:
            accuracy = over_seeds(weight["accuracy"].sel(step=step).values)
            lines += [f"Step {step}, training accuracy {accuracy}:", "", _cells(weight[name].sel(step=step)), ""]
    lines += [
        "Efficiency is the fraction of the exact step's progress, each step at its best size; the relative bias of an "
        "estimate that is nearly orthogonal to the gradient is near 1 because it is short, above 1 because it is long.",
        "",
        "## In the space of the activations",
        "",
        "The same cosines of projections in activation space, measured there: every example's gradient counts on its "
        "own, and no average over examples helps.",
        "",
        _at_activations(found),
        "",
        "## Noise against theory",
        "",
        "Mean cosine of a random weight guess by tap, global target, beside Γ(P/2)/(√π Γ((P+1)/2)) for its P weights:",
        "",
        _isotropic(found),
        "",
        "## Trained by the estimates",
        "",
        f"The same networks trained for {trained.attrs['epochs']} epochs with the estimates in place of the gradient, "
        f"one guess a step, Adam at rate {trained.attrs['rate']:g} for networks and heads; {trained.sizes['seed']} "
        "seeds. Noise is that of activity and weight perturbation (uniform on the sphere), whose constant factor Adam "
        "removes. The output layer gets its exact gradient from the heads' estimates, but a guess from perturbations.",
        "",
        "![Accuracies](guess_target_training.png)",
        "",
        _accuracies(trained),
        "",
        *_alignment_against_training(weight, trained),
        "## Not done",
        "",
        "The paper's networks are ResNet-18 in 8 or 16 blocks on CIFAR-10 and ImageNet32. Convolutional taps do not "
        "exist here yet, so that part is open, and so are heads that read images: the CNN head here reads the units of "
        "a layer as a sequence, which have no order. Heads have no BatchNorm, which lets examples interact.",
    ]
    return "\n".join(lines) + "\n"


def _in_short(weight: xr.Dataset) -> list[str]:
    """The cosines of trained and frozen heads and of noise, before and after, a line each."""
    lines = []
    for index, when in ((0, "first"), (-1, "last")):
        own = weight["cosine"].sel(target="global").isel(step=index)
        said = []
        for guess in ("mlp head", "linear head", "mlp frozen", "random"):
            values = [_shown(over_seeds(own.sel(guess=guess, projection=p).values)) for p in PROJECTIONS]
            said.append(f"{NAMES[guess]} {' and '.join(values)}")
        step = int(weight["step"][index])
        lines.append(f"- {when} step measured, {step}: cosine in activation and in weight space: {'; '.join(said)}.")
    return [*lines, ""]


def _claim(weight: xr.Dataset) -> str:
    cosine = weight["cosine"].sel(target="global")
    rows = []
    for step in cosine["step"].values:
        for projection in PROJECTIONS:
            own = cosine.sel(step=step, projection=projection)
            noise = own.sel(guess="random").values
            differences = [over_seeds(own.sel(guess=guess).values - noise) for guess in (*HEADS, NOISE[-1])]
            rows.append([str(step), projection, str(over_seeds(noise)), *map(_shown, differences)])
    named = [f"{NAMES[guess]}: more by" for guess in (*HEADS, NOISE[-1])]
    return table(["step", "space", "cosine of noise", *named], rows)


def _slopes(weight: xr.Dataset, batch: int) -> list[str]:
    """What noise gains from a slope an example."""
    noise = weight["cosine"].sel(target="global", guess="random").isel(step=0)
    many, one = (over_seeds(noise.sel(projection=projection).values) for projection in PROJECTIONS)
    return [
        f"The two spaces do not ask the same of the network: a projection in activation space takes {batch} slopes a "
        f"tap, one an example, and in weight space one. So noise reaches a cosine of {many} at the start with the "
        f"first, and {one} with the second.",
        "",
    ]


def _verdict(weight: xr.Dataset, against: str) -> list[str]:
    """For every step and space, which heads are above the noise, which below, with the interval clear of zero."""
    rows = []
    for step in weight["step"].values:
        for projection in PROJECTIONS:
            own = weight["cosine"].sel(step=step, projection=projection, target="global")
            noise = own.sel(guess=against).values
            sides: dict[str, list[str]] = {side: [] for side in SIDES}
            for guess in HEADS:
                sides[_side(over_seeds(own.sel(guess=guess).values - noise))].append(NAMES[guess].replace(" head,", ""))
            said = [listed(names) if names else "none" for names in sides.values()]
            rows.append([str(step), projection, *said])
    return [table(["step", "space", *(f"{side} {NAMES[against]}" for side in SIDES)], rows), ""]


def _shown(interval: Interval) -> str:
    """The interval, without digits that single precision does not have, and without a minus before a zero."""
    if interval.half < 1e-6 * abs(interval.mean):
        return f"{interval.mean:.3g}"
    return re.sub(r"^-(0\.0+ )", r"\1", str(interval))


def _side(difference: Interval) -> str:
    if difference.low > 0:
        return SIDES[0]
    return SIDES[1] if difference.high < 0 else SIDES[2]


def _cells(values: xr.DataArray) -> str:
    columns = [(target, projection) for target in TARGETS for projection in PROJECTIONS]
    rows = []
    for guess in GUESSES:
        own = [over_seeds(values.sel(guess=guess, target=t, projection=p).values) for t, p in columns]
        rows.append([NAMES[guess], *map(_shown, own)])
    return table(["guess", *(f"{target}, {projection}" for target, projection in columns)], rows)


def _at_activations(found: xr.Dataset) -> str:
    own = found["cosine"].sel(space="activation", layer=HIDDEN, projection="activation")
    header = ["guess", *(f"{target}, step {step}" for target in TARGETS for step in own["step"].values)]
    rows = []
    for guess in GUESSES:
        cells = [over_seeds(own.sel(guess=guess, target=t, step=s).values) for t in TARGETS for s in own["step"].values]
        rows.append([NAMES[guess], *map(_shown, cells)])
    return table(header, rows)


def _isotropic(found: xr.Dataset) -> str:
    own = found["cosine"].sel(guess="random", target="global", projection="weight", space="weight")
    rows = []
    for layer in own["layer"].values[:-1]:
        predicted = f"{float(found['isotropic_cosine'].sel(layer=layer)):.5f}"
        cells = [over_seeds(own.sel(layer=layer, step=step).values) for step in own["step"].values]
        within = listed("yes" if cell.low <= float(predicted) <= cell.high else "no" for cell in cells)
        rows.append([str(layer), predicted, *map(_shown, cells), within])
    return table(["tap", "predicted", *(f"step {step}" for step in own["step"].values), "within"], rows)


def _accuracies(trained: xr.Dataset) -> str:
    last = trained.isel(step=-1)
    rows = []
    for way in last["way"].values:
        parts = [over_seeds(last[f"{part}_accuracy"].sel(way=way).values) for part in ("train", "test")]
        rows.append([str(way), *map(str, parts)])
    return table(["target, guess, space", "training accuracy", "test accuracy"], rows)


def _alignment_against_training(weight: xr.Dataset, trained: xr.Dataset) -> list[str]:
    """Whether what is better aligned trains better: the trained linear head's two targets, in activation space."""
    cosine = weight["cosine"].isel(step=-1).sel(guess="linear head", projection="activation")
    accuracy = trained["train_accuracy"].isel(step=-1)
    aligned = over_seeds(cosine.sel(target="global").values - cosine.sel(target="local").values)
    better = over_seeds(
        accuracy.sel(way="global, linear head, activation").values - accuracy.sel(way="local, linear head").values
    )
    words = ("higher", "lower", "not told apart")
    return [
        "With a trained linear head, the global target in activation space against the local one: the cosine, measured "
        f"at step {int(weight['step'][-1])} on networks that followed their gradient, is {verb(aligned, *words)} "
        f"(difference {aligned}); the training accuracy of networks that followed the estimates is "
        f"{verb(better, *words)} (difference {better})."
        + (" A cosine on another's path is no forecast of one's own." if aligned.low > 0 > better.high else ""),
        "",
    ]


def figures(tree: xr.DataTree) -> dict[str, Figure]:
    """By the end of their names."""
    return {
        "cosine": _heat_map(tree["measured"].to_dataset()),
        "training": _training(tree["trained"].to_dataset()),
    }


def _heat_map(found: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn

    steps = found["step"].values
    drawn, grid = plt.subplots(
        1, len(steps), figsize=(2.6 * len(steps) + 2.4, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    columns = [f"{target}\n{projection}" for target in TARGETS for projection in PROJECTIONS]
    for axes, step in zip(grid[0], steps, strict=True):
        own = found["cosine"].sel(space="weight", layer=HIDDEN, step=step).mean("seed")
        values = own.transpose("guess", "target", "projection").to_numpy().reshape(len(GUESSES), -1)
        last = axes is grid[0][-1]
        seaborn.heatmap(
            values,
            ax=axes,
            vmin=0,
            vmax=1,
            cmap="cividis",
            annot=np.round(values, 2) + 0.0,  # No minus before a zero.
            fmt=".2f",
            annot_kws={"fontsize": 7},
            xticklabels=columns,
            yticklabels=[NAMES[guess] for guess in GUESSES],
            cbar=last,
            cbar_kws={"label": "mean cosine [1]"} if last else None,
        )
        accuracy = float(found["accuracy"].sel(step=step).mean())
        axes.set_title(f"step {step}, accuracy {accuracy:.2f}", fontsize=9)
        axes.tick_params(axis="x", labelsize=7, rotation=0)
        axes.tick_params(axis="y", labelsize=8, rotation=0)
    drawn.supxlabel("target and space of the projection", fontsize=9)
    drawn.supylabel("guess", fontsize=9)
    return drawn


def _training(trained: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn

    ways = [str(way) for way in trained["way"].values]
    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        drawn, axes = plt.subplots(figsize=(6.5, 0.3 * len(ways) + 1.1), layout="constrained")
    places = np.arange(len(ways))[::-1]
    colours = seaborn.color_palette("colorblind")
    for part, colour, marker, shift in (("train", colours[0], "o", 0.12), ("test", colours[1], "s", -0.12)):
        values: Any = trained[f"{part}_accuracy"].isel(step=-1).transpose("seed", "way").to_numpy()
        axes.errorbar(
            values.mean(0),
            places + shift,
            xerr=half_widths(values, 0),
            ls="",
            marker=marker,
            ms=4,
            color=colour,
            label=f"{'training' if part == 'train' else 'test'} set",
        )
    axes.set_yticks(places, ways)
    axes.set_xlabel(f"accuracy after {trained.attrs['epochs']} epochs [1]")
    axes.set_ylabel("target, guess, space")
    drawn.legend(loc="outside right upper", frameon=False)
    return drawn
