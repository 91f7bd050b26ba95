"""What the page of `studies.step_cost` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.estimators import LocalLoss
from fganalysis.estimators.upstream.newton_schulz_polynomials import COMPOSITIONS
from studies.kit import pages
from studies.step_cost import arithmetic
from studies.step_cost.cells import (
    CNN_HEAD,
    EXACT,
    MLP_HEAD,
    NEWTON_SCHULZ,
    PRECONDITIONED,
    PROJECTED,
    SLOW,
    SMALL_CNN,
    SMALL_MLP,
    STEPS,
)

ITERATED = "orthogonal (W̃⊥), 1 iteration"
FAST = (ITERATED, "orthogonal (W̃⊥), Krylov")  # W̃⊥ with k = 10, without a decomposition.
JUDGED = {"width": 512, "batch": 512}  # Where the bounds are asked for.
LEAST_GAIN, MOST_STEPS = 15, 3
LARGE_HEADS, SMALL_HEADS = (MLP_HEAD, CNN_HEAD), (SMALL_MLP, SMALL_CNN)
# Table 4: seconds of the whole training.
PRINTED = {
    (512, NEWTON_SCHULZ): 6 * 3600,
    (512, EXACT): 40 * 3600,
    (512, "upstream (W̃ᵀ)"): 26 * 60,
    (128, NEWTON_SCHULZ): 9 * 60,
    (128, EXACT): 3600,
    (128, "upstream (W̃ᵀ)"): 5 * 60,
}
PRINTED_STEPS = 300 * 8


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/step_cost.md."""
    return pages.render("step_cost", values(dataset))


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    widest = dataset.isel(width=-1)
    return {
        "settings": dataset.attrs,
        "scale": dataset.attrs["batch"] / dataset.attrs["slow_examples"],
        "widest": int(widest["width"]),
        "activity": _steps(widest, "activity"),
        "iterated": _steps(widest, ITERATED),
        "widths": [_of_width(dataset, int(width)) for width in dataset["width"].values],
        "least_gain": LEAST_GAIN,
        "most_steps": MOST_STEPS,
        "preconditioned": PRECONDITIONED,
        "degree": arithmetic.DEGREE,
        "printed_steps": PRINTED_STEPS,
        "table_4": _table_4(dataset),
        "gains": _gains(dataset),
        "products": 4 * COMPOSITIONS,
    }


def _of_width(dataset: xr.Dataset, width: int) -> dict[str, object]:
    """The table of one width, W̃⊥ against the decomposition, and whether the bounds hold where they are asked for."""
    own = dataset.sel(width=width)
    judged = {"width": width, "batch": int(dataset.attrs["batch"])} == JUDGED
    rows = []
    for name in map(str, dataset["gradient"].values):
        taken = own.sel(gradient=name).dropna("round")
        if not taken.sizes["round"]:
            continue
        star = "*" if dataset.attrs["slow_examples"] < dataset.attrs["batch"] and name in SLOW else ""
        row = [f"{name}{star}", _spread(taken["seconds"].values * 1e3, 4), _spread(taken["ratio"].values, 3)]
        rows.append([*row, str(taken.sizes["round"]), *(_verdict(own, name) if judged else [])])
    header = ["step", "ms", "backpropagation steps", "rounds", *(["bound", "holds"] if judged else [])]
    return {
        "width": width,
        "header": header,
        "rows": rows,
        "fast": [(name, _gain(own, name), _least_gain(own, name)) for name in FAST],
        "bounds": _bounds(own, width) if judged else None,
    }


def _spread(values: NDArray[np.float64], digits: int) -> str:
    return f"{np.median(values):.{digits}g} ({values.min():.{digits}g}–{values.max():.{digits}g})"


def _steps(own: xr.Dataset, name: str) -> float:
    """Median over rounds of a step's ratio to backpropagation's."""
    return float(own["ratio"].sel(gradient=name).median())


def _gain(own: xr.Dataset, name: str) -> float:
    """Median over rounds of the ratio of the step with an SVD of every example to this one."""
    return float((own["seconds"].sel(gradient=EXACT) / own["seconds"].sel(gradient=name)).median())


def _least_gain(own: xr.Dataset, name: str) -> float:
    """The fastest round with an SVD of every example over the slowest one of this step."""
    return float(own["seconds"].sel(gradient=EXACT).min() / own["seconds"].sel(gradient=name).max())


def _verdict(own: xr.Dataset, name: str) -> list[str]:
    """The bound of a step and whether its median keeps it; the SVD, which W̃⊥ is held against, has none."""
    if name == EXACT:
        return ["–", "–"]
    if name in FAST:
        return [f"SVD at least {LEAST_GAIN} × slower", "yes" if _gain(own, name) >= LEAST_GAIN else "no"]
    return [f"at most {MOST_STEPS} ×", "yes" if _steps(own, name) <= MOST_STEPS else "no"]


def _bounds(own: xr.Dataset, width: int) -> dict[str, object]:
    """Which steps break their bounds, for each why, and whether the small heads keep theirs where large ones do not."""
    failing = [name for name in map(str, own["gradient"].values) if _verdict(own, name)[1] == "no"]
    dear = [name for name in failing if name not in FAST]
    return {
        "slow": [name for name in FAST if name in failing],
        "dear": [{"name": name, "steps": _steps(own, name), **_why(name, width)} for name in dear],
        "large_heads": bool(set(LARGE_HEADS) & set(dear)),
        "small_heads_keep": not set(SMALL_HEADS) & set(dear),
        "small_heads": [f"{name.removeprefix('local loss, ')} ({_steps(own, name):.3g} ×)" for name in SMALL_HEADS],
    }


def _why(name: str, width: int) -> dict[str, object]:
    """Why a step is dearer than `MOST_STEPS`, as far as it is known: a case of the template and its numbers."""
    step = arithmetic.backpropagation(width)
    if name in (*LARGE_HEADS, *SMALL_HEADS):
        head = STEPS[name]
        assert isinstance(head, LocalLoss)
        heads = arithmetic.all_heads(head.head, head.width, width)
        own = arithmetic.network(width)
        return {"case": head.head, "heads": heads / 1e6, "network": own / 1e6, "arithmetic": 2 * heads / step}
    if name == NEWTON_SCHULZ:
        fewest = arithmetic.fewest_products(width, width // 2)
        return {"case": "newton_schulz", **arithmetic.newton_schulz(width), "n_fewest": fewest, "modes": width // 2}
    return {"case": "projected" if name == PROJECTED else "unknown"}


def _table_4(dataset: xr.Dataset) -> list[list[str]]:
    """The paper's seconds a step beside ours."""
    rows = []
    for (width, name), printed in PRINTED.items():
        if width in dataset["width"].values:
            ours = float(dataset["seconds"].sel(width=width, gradient=name).median())
            rows.append([str(width), name, f"{printed / PRINTED_STEPS:.3g}", f"{ours:.3g}"])
    return rows


def _gains(dataset: xr.Dataset) -> list[tuple[int, float, float]]:
    """Width, and how many times faster W̃⊥-NS is than the SVD, here and in the paper: what table 4 is about."""
    widths = [width for width in dict.fromkeys(width for width, _ in PRINTED) if width in dataset["width"].values]
    return [
        (width, _gain(dataset.sel(width=width), NEWTON_SCHULZ), PRINTED[width, EXACT] / PRINTED[width, NEWTON_SCHULZ])
        for width in widths
    ]
