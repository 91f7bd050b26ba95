"""Whether a snapshot's loss has kinks in the weights, read from autograd's graph of the recorded pass.

At a kink, as that of ReLU at 0 or where another entry becomes the largest of a pooled patch, the gradient jumps.
Hessian and Gauss–Newton matrix do not see the jump. A step that crosses kinks meets a curvature that they do not show.
"""

from __future__ import annotations

from typing import Any

from fganalysis.capturing.snapshot import Snapshot

# Autograd's names of functions whose gradient jumps somewhere, without "Backward" and the number behind it.
KINKED = {
    "Abs",
    "AdaptiveMaxPool2D",
    "AdaptiveMaxPool3D",
    "Amax",
    "Amin",
    "Clamp",
    "ClampMax",
    "ClampMin",
    "CudnnConvolutionRelu",
    "FractionalMaxPool2D",
    "FractionalMaxPool3D",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyRelu",
    "LinalgVectorNorm",
    "Max",
    "MaxPool1DWithIndices",
    "MaxPool2DWithIndices",
    "MaxPool3DWithIndices",
    "Maximum",
    "Median",
    "Min",
    "Minimum",
    "MkldnnMaxPool2D",
    "MkldnnMaxPool3D",
    "MultiMarginLoss",
    "MultilabelMarginLoss",
    "Norm",
    "PreluKernel",
    "Relu",
    "RreluWithNoise",
    "Softshrink",
    "Sort",
    "Threshold",
    "Topk",
}


def has_kinks(snapshot: Snapshot) -> bool | None:
    """Whether a function with kinks is between the weights and the loss; None without a recorded pass.

    Functions of the user's with a backward pass of their own are taken for smooth.
    """
    if snapshot.graph is None:
        return None
    seen: set[Any] = set()
    pending: list[Any] = [snapshot.graph.loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = str(node.name()).partition("Backward")[0]
        # Of ELU and SELU the slopes on both sides of 0 are scale·alpha·input_scale and scale.
        if name in KINKED or (name == "Elu" and node._saved_alpha * node._saved_input_scale != 1):
            return True
        pending.extend(following for following, _ in node.next_functions)
    return False
