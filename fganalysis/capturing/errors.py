"""The errors of networks, batches and losses that cannot be measured."""

from __future__ import annotations


class CannotMeasure(ValueError):
    """A network, batch or loss that cannot be measured; the message is one sentence with the cause and the way out."""


class NonFiniteActivations(CannotMeasure):
    """A forward pass that left NaN or infinite numbers at a tap."""
