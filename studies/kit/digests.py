"""The hashes of the datasets that cells read, as their identities have them."""

from __future__ import annotations

from studies.kit import kept_data


def digests(*names: str) -> dict[str, str]:
    """The hash of each dataset, by its name."""
    return {name: kept_data.load(name).digest() for name in names}
