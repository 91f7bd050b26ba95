"""Every kernel of a weight map against the module's local vector–Jacobian product, over one table of modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fganalysis.capturing.packing import Packing
from fganalysis.capturing.weight_maps.any_module import ModuleMap
from fganalysis.capturing.weight_maps.diagonal import DiagonalMap
from fganalysis.capturing.weight_maps.kinds import Called, Kind, kind_of
from fganalysis.capturing.weight_maps.lookup import LookupMap
from fganalysis.capturing.weight_maps.matrix import GroupedMap, MatrixMap


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def whole(below: int, *shape: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(0))


KERNELS: dict[str, tuple[Callable[[], nn.Module], Tensor, type]] = {
    "linear": (lambda: nn.Linear(3, 4), normal(5, 3), MatrixMap),
    "linear without bias": (lambda: nn.Linear(3, 4, bias=False), normal(5, 3), MatrixMap),
    "linear on positions": (lambda: nn.Linear(3, 4), normal(5, 2, 3), MatrixMap),
    "linear on more inputs than rows": (lambda: nn.Linear(9, 2), normal(4, 9), MatrixMap),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), normal(3, 2, 7), MatrixMap),
    "conv2d": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0)), normal(3, 2, 6, 5), MatrixMap),
    "conv2d dilated": (lambda: nn.Conv2d(2, 4, 2, dilation=2, bias=False), normal(3, 2, 5, 5), MatrixMap),
    "conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), normal(2, 4, 4, 3), GroupedMap),
    "conv2d depthwise": (lambda: nn.Conv2d(3, 3, 3, groups=3, bias=False), normal(2, 3, 4, 4), GroupedMap),
    "conv2d same": (lambda: nn.Conv2d(2, 3, (1, 3), padding="same"), normal(2, 2, 4, 4), MatrixMap),
    "conv2d circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), normal(2, 2, 4, 4), MatrixMap),
    "conv2d reflect": (
        lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"),
        normal(2, 2, 4, 4),
        MatrixMap,
    ),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, stride=(1, 2, 1)), normal(2, 1, 3, 4, 3), MatrixMap),
    "embedding": (lambda: nn.Embedding(6, 3), whole(6, 4, 5), LookupMap),
    "embedding with padding": (lambda: nn.Embedding(4, 3, padding_idx=1), whole(4, 4, 5), LookupMap),
    "layer norm": (lambda: nn.LayerNorm(3), normal(4, 2, 3), DiagonalMap),
    "layer norm of images": (lambda: nn.LayerNorm((2, 3)), normal(4, 2, 3), DiagonalMap),
    "layer norm without bias": (lambda: nn.LayerNorm(3, bias=False), normal(4, 3), DiagonalMap),
    "rms norm": (lambda: nn.RMSNorm(3), normal(4, 2, 3), DiagonalMap),
    "group norm": (lambda: nn.GroupNorm(2, 4), normal(3, 4, 2, 2), DiagonalMap),
    "batch norm": (lambda: nn.BatchNorm2d(3).eval(), normal(4, 3, 2, 2), DiagonalMap),
    "batch norm in training": (lambda: nn.BatchNorm1d(3), normal(5, 3), DiagonalMap),
    "batch norm without statistics": (lambda: nn.BatchNorm1d(3, track_running_stats=False), normal(5, 3), DiagonalMap),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), normal(2, 2, 3, 3), ModuleMap),
    "prelu": (lambda: nn.PReLU(3), normal(4, 3), ModuleMap),
}
FROZEN = [None, "weight", "bias"]


def _made(name: str, frozen: str | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = KERNELS[name][0]().double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    if frozen is not None:
        module.get_parameter(frozen).requires_grad_(False)
    return module


def _called(module: nn.Module, inputs: Tensor) -> tuple[Called, Tensor]:
    output = module(inputs)
    trained = tuple(name for name, parameter in module.named_parameters() if parameter.requires_grad)

    def read(weights: Mapping[str, Tensor]) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        result: Tensor = torch.func.functional_call(module, {**buffers, **weights}, (inputs,))
        return result

    return Called(module, (inputs,), {}, tuple(output.shape), trained, read), output


def _local_product(module: nn.Module, output: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    parts = torch.autograd.grad(output, list(parameters.values()), cotangent, retain_graph=True)
    return dict(zip(parameters, parts, strict=True))


def _cases() -> list[tuple[str, str | None]]:
    cases: list[tuple[str, str | None]] = []
    for name in KERNELS:
        known = dict(_made(name, None).named_parameters())
        cases += [(name, frozen) for frozen in FROZEN if frozen is None or (frozen in known and len(known) > 1)]
    return cases


@pytest.mark.parametrize(("name", "frozen"), _cases())
def test_a_kernel_is_the_local_vector_jacobian_product(name: str, frozen: str | None) -> None:
    module, (_, inputs, expected) = _made(name, frozen), KERNELS[name]
    called, output = _called(module, inputs)
    kind = kind_of(called)
    assert type(kind.weights) is expected
    generator = torch.Generator().manual_seed(1)
    guesses = torch.randn(3, kind.layout.n_rows, kind.layout.units, generator=generator, dtype=torch.float64)
    found = kind.weights.gradients(guesses)
    for guess in range(3):
        exact = _local_product(module, output, kind.layout.whole(guesses[guess]))
        by_name = kind.packing.unpacked(found[guess])
        assert sorted(by_name) == sorted(exact)
        for parameter, product in exact.items():
            torch.testing.assert_close(by_name[parameter], product, rtol=1e-10, atol=1e-12)
    image = kind.weights.image(guesses).flatten(1)
    torch.testing.assert_close(image @ image.T, found.flatten(1) @ found.flatten(1).T, rtol=1e-9, atol=1e-11)
    _check_adjoint(kind, guesses, found)


CONVOLUTIONS = [
    (name, frozen) for name, frozen in _cases() if name.startswith("conv") and KERNELS[name][2] is MatrixMap
]


@pytest.mark.parametrize(("name", "frozen"), CONVOLUTIONS)
def test_a_convolution_in_single_precision_needs_no_patches_and_gives_what_they_give(
    name: str, frozen: str | None
) -> None:
    weights = kind_of(_called(_made(name, frozen).float(), KERNELS[name][1].float())[0]).weights
    assert isinstance(weights, MatrixMap) and weights.convolution is not None
    generator = torch.Generator().manual_seed(1)
    for units in (1, 3):  # Some of the units alone, as `error_grams` takes them.
        guesses = torch.randn(2, weights.shape[0], units, generator=generator)
        found = weights.gradients(guesses)
        assert "inputs" not in vars(weights) or units == 3
        assert weights.inputs.shape == weights.shape
        torch.testing.assert_close(found, torch.matmul(weights.inputs.T, guesses).mT, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.double(), weights.gradients(guesses.double()), rtol=1e-4, atol=1e-5)


def _check_adjoint(kind: Kind, guesses: Tensor, gradients: Tensor) -> None:
    """⟨A ΔW, ĝ⟩ = ⟨ΔW, Aᵀĝ⟩."""
    generator = torch.Generator().manual_seed(2)
    changes = torch.randn(2, *gradients.shape[1:], generator=generator, dtype=torch.float64)
    moved = kind.weights.along(changes)
    assert moved.shape[1:] == guesses.shape[1:]
    torch.testing.assert_close(
        moved.flatten(1) @ guesses.flatten(1).T, changes.flatten(1) @ gradients.flatten(1).T, rtol=1e-9, atol=1e-11
    )


def test_rows_go_back_to_the_shape_of_the_output() -> None:
    for name in KERNELS:
        module = _made(name, None)
        kind = kind_of(_called(module, KERNELS[name][1])[0])
        output = module(KERNELS[name][1]).detach()
        rows = kind.layout.rows(torch.stack([output, 2 * output]))
        assert rows.shape == (2, kind.layout.n_rows, kind.layout.units)
        torch.testing.assert_close(kind.layout.whole(rows)[1], 2 * output)


class Wrong(nn.Linear):
    """A subclass with a forward pass of its own is no Linear module."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input)


def test_a_subclass_with_a_forward_pass_of_its_own_has_no_kernel() -> None:
    module = Wrong(3, 2).double()
    called, output = _called(module, normal(4, 3))
    kind = kind_of(called)
    assert type(kind.weights) is ModuleMap
    cotangent = normal(1, 4, 2)
    exact = _local_product(module, output, cotangent[0])
    found = kind.packing.unpacked(kind.weights.gradients(cotangent)[0])
    torch.testing.assert_close(found["weight"], exact["weight"])


@pytest.mark.parametrize("wrong", ["a group swapped", "a row dropped", "the bias doubled"])
def test_a_wrong_kernel_would_be_seen(wrong: str) -> None:
    module, inputs = _made("conv2d in groups", None), KERNELS["conv2d in groups"][1]
    called, output = _called(module, inputs)
    kind = kind_of(called)
    assert isinstance(kind.weights, GroupedMap)
    changed = kind.weights.inputs.clone()
    if wrong == "a group swapped":
        changed = changed.flip(0)
    elif wrong == "a row dropped":
        changed[:, 0] = 0
    else:
        changed[..., -1] *= 2
    cotangent = normal(1, kind.layout.n_rows, kind.layout.units)
    exact = _local_product(module, output, kind.layout.whole(cotangent[0]))
    found = kind.packing.unpacked(GroupedMap(changed).gradients(cotangent)[0])
    assert not all(torch.allclose(found[name], exact[name]) for name in exact)


def test_a_packing_is_undone() -> None:
    parameters: dict[str, Any] = {"a": normal(4, 3, 2), "b": normal(4)}
    packing = Packing.flat({name: tuple(p.shape) for name, p in parameters.items()})
    back = packing.unpacked(packing.packed(parameters))
    assert packing.shape == (1, 28)
    for name, parameter in parameters.items():
        torch.testing.assert_close(back[name], parameter)
