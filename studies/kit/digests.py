"""The hashes of the datasets that cells read, as their identities have them."""

from __future__ import annotations

import fganalysis as fga


def digests(*names: str) -> dict[str, str]:
    """The hash of each dataset, by its name."""
    return {name: fga.datasets.load(name).digest() for name in names}
