"""A pretended accelerator: a device of torch's own kind whose tensors hold their numbers on the CPU.

It behaves as a GPU does where that matters for being right: a tensor on it and a tensor on the CPU do not go into one
operation, its random numbers need a generator of its own, NumPy does not see its numbers, and every operation that
would make the host wait is counted. What it computes is what the CPU computes, so results can be compared number by
number. It does not show what a GPU's kernels round differently, nor how fast they are.

`install` cannot be undone, so it is called in processes that do nothing else (`tests.devices.paths`).
"""

from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
CPU = torch.device("cpu")
aten = torch.ops.aten

# On a GPU the host waits for these: it asks for a number, for the shape of a result or for whether a solver succeeded.
WAITS = {
    aten._local_scalar_dense: "item",
    aten.nonzero: "nonzero",
    aten.equal: "equal",
    aten.masked_select: "masked_select",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique",
    aten._linalg_check_errors: "check of a solver",
    aten._linalg_svd: "svd",
    aten._linalg_eigh: "eigh",
}
COPIES = (aten.copy_, aten._to_copy, aten._copy_from)
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)
WITHOUT_SCALARS = (aten.cat, aten.stack)  # Which take no number of the CPU beside tensors of a GPU.
# Tensors that stand for numbers which are not there, and which no operation of the CPU below this class resolves.
WRITTEN_OUT = {
    aten._efficientzerotensor.default: aten.zeros.default,
    aten._neg_view.default: aten.neg.default,
    aten._conj.default: aten._conj_physical.default,
}

waited: collections.Counter[str] = collections.Counter()
_places: dict[int, torch.device] = {}  # Of the generators, by the address of what they hold.
_kept: list[object] = []  # Registrations end when these objects do.


class OnDevice(torch.Tensor):
    """A tensor on the pretended device. held: its numbers, a tensor on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, requires_grad: bool = False) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.held})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        return _on_device(function, arguments, keywords or {})

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __deepcopy__(self, memory: dict[int, Any]) -> Any:
        if id(self) not in memory:
            if not self.is_leaf:
                raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")
            made = OnDevice(self.held.clone(), self.requires_grad)
            made.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "held"}
            made.grad = None if self.grad is None else copy.deepcopy(self.grad, memory)
            memory[id(self)] = made
        return memory[id(self)]

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        assert isinstance(value, OnDevice), "the data of a tensor stay on its device"
        with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
            torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held


class Generator(torch._C.Generator):
    """A generator of any device, the pretended one too, with the numbers of the CPU."""

    def __new__(cls, device: str | torch.device = "cpu") -> Generator:
        made = super().__new__(cls)
        made.place = _places[made._cdata] = torch.device(device)
        return made

    def __init__(self, device: str | torch.device = "cpu"):
        pass

    place: torch.device

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place


class _Kind(type(torch._C.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)


def _on_device(function: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
    """Computes on the CPU what is asked of the device, after the checks that a GPU would make."""
    packet = function.overloadpacket
    tensors = [part for part in _flat((arguments, keywords)) if isinstance(part, torch.Tensor)]
    _check_places(packet, function, arguments, tensors)
    _count(packet, arguments, keywords, tensors)
    known = {id(part.held): part for part in tensors if isinstance(part, OnDevice)} | {
        id(part): part for part in tensors if not isinstance(part, OnDevice)
    }
    there, named = _mapped(_below, (arguments, keywords))
    result = WRITTEN_OUT.get(function, function)(*there, **named)
    for part in tensors:
        if isinstance(part, OnDevice) and part.shape != part.held.shape:
            part.data = OnDevice(part.held)  # The operation changed the shape in place.
    goal = keywords.get("device")
    if goal is not None and torch.device(goal).type != NAME:
        return result

    def above(part: Any) -> Any:
        return known.get(id(part)) or OnDevice(part) if isinstance(part, torch.Tensor) else part

    return _mapped(lambda part: known[id(part)] if id(part) in known else above(part), result)


def _flat(part: Any) -> Iterator[Any]:
    """What stands in tuples, lists and dictionaries; torch's own function for that takes a fifth of the time here."""
    if isinstance(part, tuple | list):
        for inner in part:
            yield from _flat(inner)
    elif isinstance(part, dict):
        yield from _flat(tuple(part.values()))
    else:
        yield part


def _mapped(function: Callable[[Any], Any], part: Any) -> Any:
    """The same with a function of each."""
    if isinstance(part, tuple):
        return tuple(_mapped(function, inner) for inner in part)
    if isinstance(part, list):
        return [_mapped(function, inner) for inner in part]
    if isinstance(part, dict):
        return {name: _mapped(function, inner) for name, inner in part.items()}
    return function(part)


def _below(part: Any) -> Any:
    if isinstance(part, OnDevice):
        return part.held
    return CPU if isinstance(part, torch.device) and part.type == NAME else part


def _check_places(packet: Any, function: Any, arguments: Any, tensors: list[torch.Tensor]) -> None:
    if packet in COPIES or not any(isinstance(part, OnDevice) for part in tensors):
        return
    others = [part for part in tensors if not isinstance(part, OnDevice)]
    if packet in INDEXING and isinstance(arguments[0], OnDevice):
        others = [part for part in others if part.dtype not in (torch.int64, torch.bool)]
    written = [
        value
        for value, declared in zip(arguments, function._schema.arguments, strict=False)
        if declared.alias_info is not None and declared.alias_info.is_write
    ]
    wrong = [
        part for part in others if part.ndim > 0 or packet in WITHOUT_SCALARS or any(part is value for value in written)
    ]
    if wrong:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {NAME}:0 and cpu in {function} "
            f"(the one on the CPU has the shape {tuple(wrong[0].shape)})"
        )


def _check_generator(generator: Any, place: str) -> None:
    # Operations are handed a generator without its class.
    given = _places.get(generator._cdata, CPU).type
    if given != place:
        raise RuntimeError(f"Expected a {place!r} device type for generator but found {given!r}")


def _count(packet: Any, arguments: Any, keywords: dict[str, Any], tensors: list[torch.Tensor]) -> None:
    """Counts what the host waits for; a copy to the device is none of it."""
    if packet in WAITS:
        waited[WAITS[packet]] += 1
    elif packet in (aten._to_copy, aten.copy_) and _to_cpu(packet, arguments, keywords):
        waited["copy to the CPU"] += 1
    elif packet in INDEXING and any(part.dtype == torch.bool for part in tensors[1:]):
        waited["index by a mask"] += 1


def _to_cpu(packet: Any, arguments: Any, keywords: dict[str, Any]) -> bool:
    """Whether a copy goes from the device to the CPU."""
    if packet is aten.copy_:
        return isinstance(arguments[1], OnDevice) and not isinstance(arguments[0], OnDevice)
    goal = keywords.get("device")
    return isinstance(arguments[0], OnDevice) and goal is not None and torch.device(goal).type == "cpu"


class _Generators(TorchDispatchMode):
    """Refuses a draw on the CPU from a generator of the device, of which the tensors above know nothing."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        generator = keywords.get("generator")
        if isinstance(generator, torch._C.Generator):
            place = keywords["device"] if keywords.get("device") is not None else _place(arguments)
            _check_generator(generator, torch.device(place).type)
        return function(*arguments, **keywords)


def _place(arguments: Any) -> Any:
    return arguments[0].device if arguments and isinstance(arguments[0], torch.Tensor) else "cpu"


def _called(operation: Any, *arguments: Any, **keywords: Any) -> Any:
    return _on_device(operation, arguments, keywords)


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def install() -> torch.device:
    """Registers the device in this process, and returns it."""
    _setup_privateuseone_for_python_backend(NAME, _Backend())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_called, "PrivateUse1")
    # torch.tensor copies without asking the tensor's class, and a fallback is not found there.
    copies = torch.library.Library("aten", "IMPL")
    for operation in (aten.copy_.default, aten.detach.default, aten.empty_strided.default, aten.empty.memory_format):
        copies.impl(operation.name(), functools.partial(_called, operation), "PrivateUse1")
    mode = _Generators()
    mode.__enter__()
    _kept.extend((library, copies, mode))
    torch.Generator = _Kind("Generator", (Generator,), {})  # type: ignore[misc,assignment]
    return torch.device(NAME, 0)


@contextmanager
def waits() -> Iterator[collections.Counter[str]]:
    """What the host waits for inside, by the kind of operation."""
    before, found = waited.copy(), collections.Counter[str]()
    yield found
    found.update(waited - before)
