"""Answer (d) of `studies.subspaces`: does gradient energy in a subspace predict progress when descending in it?

Every number and every verdict is read from the collected Dataset. Intervals are 95 % over seeds. A verdict says "more"
or "less" only where the interval of a difference, taken seed by seed, leaves zero out.
"""

from __future__ import annotations

import xarray as xr

from studies.kit.seeds import over_seeds
from studies.subspaces.cells import MANY_EXAMPLES, METHODS
from studies.subspaces.descent import BRANCHES
from studies.subspaces.figures import BRANCH_NAMES, NAMES, progress_of
from studies.subspaces.picks import NEAR, all_widths


def descent(collected: xr.Dataset, k: int) -> dict[str, object]:
    """What answer (d) says: the names of the template progress.md.j2."""
    branches = [str(branch) for branch in collected["branch"].values]
    share = {branch: over_seeds(collected["descent_share"].sel(branch=branch)) for branch in branches}
    progress = dict(zip(BRANCHES, progress_of(collected["descent_loss"]), strict=True))
    done = {branch: over_seeds(progress[branch]) for branch in branches}
    less = over_seeds(progress["dominant"] - collected["descent_share"].sel(branch="dominant").values)
    width = all_widths(collected)[0]
    hessian = collected.sel(directions="hessian", moment="last", width=width)
    names = ("curvature_share", "curvature_random_share", "curvature_truncated_share", "curvature_kept")
    return {
        "share": share,
        "done": done,
        "less": less,
        "agree": all(abs(done[branch].mean - share[branch].mean) < NEAR for branch in ("top", "other", "rest")),
        "near": NEAR,
        "rows": [[BRANCH_NAMES[branch], str(share[branch]), str(done[branch])] for branch in branches],
        "width": width,
        "n_examples": MANY_EXAMPLES,
        "curvature": [
            [NAMES[method], *(str(over_seeds(hessian[name].sel(trained_by=method))) for name in names)]
            for method in METHODS
        ],
    }
