"""What a training step with an estimator costs, in passes over the batch: stated by every estimator, in its `passes`.

    forward    through the network, the loss included
    tangent    the derivative of a forward pass along one direction (forward mode), beside the forward pass itself
    backward   through the network: to the inputs of every layer and to its weights
    products   of one layer by itself, made once for every layer: V x, what a direction V of the weights changes at a
               layer's outputs; ĝ xᵀ, the weight gradient of a guess at the activations; Wᵀε, an upstream direction

What is stated is the step of the paper, without a backward pass where its guess takes none. The estimators of this
package may get the same guess from the exact gradient, whose inner products with directions are the slopes; in training
with ``autodiff="forward"`` they take them by forward mode. A pass counts whole, even if it goes through a part of the
network only. Where a step works on a part of the batch, it counts as that part of a pass. Weights of parameters of no
tap (``untapped="perturb"``) are not included.

A forward pass takes one product of every layer with its weights, and so do a tangent and each of the ``products``. A
backward pass takes two. These are `WEIGHTS`, by which `Passes.in_forward_passes` adds them up: backpropagation is 3.
What is no such product is not counted, but named in ``beside``: noise, decompositions, auxiliary heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from fganalysis.arguments import check_number, described

WEIGHTS: Mapping[str, float] = MappingProxyType({"forward": 1.0, "tangent": 1.0, "backward": 2.0, "products": 1.0})


@dataclass(frozen=True)
class Passes:
    """Passes over the batch of one training step; the module says what each is.

    Attributes:
        beside: what else the step takes, in words.

    Raises:
        ValueError: a number of passes that is negative or no number, or ``beside`` that is no tuple of texts.
    """

    forward: float = 0.0
    tangent: float = 0.0
    backward: float = 0.0
    products: float = 0.0
    beside: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind in WEIGHTS:
            check_number(kind, getattr(self, kind), least=0.0)
        if not isinstance(self.beside, tuple) or not all(isinstance(words, str) for words in self.beside):
            raise ValueError(f"beside must be a tuple of texts, got {described(self.beside)}")

    def in_forward_passes(self) -> float:
        """All of them in units of a forward pass, by `WEIGHTS`."""
        return float(sum(weight * getattr(self, kind) for kind, weight in WEIGHTS.items()))

    def times(self, share: float) -> Passes:
        """So many times these passes, such as the share of the batch that they are over."""
        return replace(self, **{kind: share * getattr(self, kind) for kind in WEIGHTS})
