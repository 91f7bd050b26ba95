"""What the page of `studies.progress` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import xarray as xr

from studies.kit import pages as page_kit
from studies.progress import best_steps, decreases, losses, pairs, rank, width_fit


def page(tree: xr.DataTree) -> str:
    """The page docs/results/progress.md."""
    steps = tree["steps"].to_dataset()
    training = tree["training"].to_dataset()
    parts = [best_steps.values(steps), decreases.values(steps), width_fit.values(tree["widths"].to_dataset())]
    parts += [rank.values(training), pairs.values(training), losses.values(training)]
    settings = {
        "networks": steps["network"].values.tolist(),
        "moments": steps["steps"].values.tolist(),
        "estimators": steps["estimator"].values.tolist(),
        "factors": steps["factor"].values.tolist(),
        "settings": tree.attrs,
    }
    named = dict[str, object]()
    for part in [*parts, settings]:
        assert not named.keys() & part.keys(), "two parts of the page have a name in common"
        named |= part
    return page_kit.render("progress", named)
