"""Answer (d) of `studies.subspaces`: does gradient energy in a subspace predict progress when descending in it?

Every number and every verdict is read from the collected Dataset. Intervals are 95 % over seeds. A verdict says "more"
or "less" only where the interval of a difference, taken seed by seed, leaves zero out.
"""

from __future__ import annotations

import xarray as xr

from studies.kit.markdown import table
from studies.kit.seeds import over_seeds
from studies.subspaces.cells import MANY_EXAMPLES, METHODS
from studies.subspaces.descent import BRANCHES
from studies.subspaces.figures import BRANCH_NAMES, NAMES, progress_of
from studies.subspaces.picks import NEAR, Answer, all_widths


def descent(collected: xr.Dataset, k: int) -> Answer:
    branches = [str(b) for b in collected["branch"].values]
    share = {b: over_seeds(collected["descent_share"].sel(branch=b)) for b in branches}
    progress = dict(zip(BRANCHES, progress_of(collected["descent_loss"]), strict=True))
    done = {b: over_seeds(progress[b]) for b in branches}
    less = over_seeds(progress["dominant"] - collected["descent_share"].sel(branch="dominant").values)
    song = "No, as Song et al. say" if less.high < 0 else "Within these intervals it may"
    near = all(abs(done[b].mean - share[b].mean) < NEAR for b in ("top", "other", "rest"))
    short = (
        f"{song}: the Hessian's {k} leading directions hold {share['dominant']} of the squared gradient and give "
        f"{done['dominant']} of the progress (less their share: {less}), the rest holds {share['bulk']} and gives "
        f"{done['bulk']}. At the upstream Jacobians share and progress {'agree' if near else 'do not all agree'} to "
        f"within {NEAR}: their {k} leading directions hold {share['top']} and give {done['top']}, what they leave "
        f"{share['rest']} and {done['rest']}, random directions of the same row spaces {share['other']} and "
        f"{done['other']}."
    )
    width = all_widths(collected)[0]
    hessian = collected.sel(directions="hessian", moment="last", width=width)
    names = ("curvature_share", "curvature_random_share", "curvature_truncated_share", "curvature_kept")
    rows = [
        [NAMES[method], *(str(over_seeds(hessian[name].sel(trained_by=method))) for name in names)]
        for method in METHODS
    ]
    return short, [
        "## (d) Does gradient energy in a subspace predict progress when descending in it?",
        "",
        "![descent along parts of the gradient](subspaces_descent.png)",
        "",
        "Plain stochastic gradient descent from one point, with the same minibatches and learning rate. Progress is "
        "the fall of the training loss, mean over the steps, over that along the whole gradient (for the Jacobians' "
        "parts: over that along the hidden layers' gradient):",
        "",
        table(
            ["part of the gradient", "share of its square", "progress"],
            [[BRANCH_NAMES[b], str(share[b]), str(done[b])] for b in branches],
        ),
        "",
        f"Gur-Ari's claim beside it, at width {width}, on {MANY_EXAMPLES} examples: shares of the squared weight "
        f"gradient in the Hessian's {k} leading eigenvectors, of the gradient truncated to the Jacobians' {k} leading "
        "directions in the same, and the truncated gradient's squared cosine with the whole:",
        "",
        table(["", "gradient", "in random directions", "truncated gradient", "squared cosine"], rows),
    ]
