"""What training changes and no ``state_dict`` has: tensors in attributes, and flags, numbers and buffers of modules."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parhelion.training import Attributes, OnDevice, entries, put_attributes

__all__ = ["ModuleAttributes", "mark_tensor", "pack", "put_module_attributes", "unpack"]


# Without narrowing: what is inside of something that is Any is Any.
_is: Callable[[Any, Any], bool] = isinstance


def mark_tensor(value: Any) -> Hashable | None:
    """Return what tells one content of a tensor from another while it lives; None for what is no plain tensor."""
    if type(value) is not Tensor or value.layout is not torch.strided or value.is_nested or value.is_quantized:
        return None
    if value.device.type == "meta":
        return None
    # torch counts the changes of every tensor; those of inference mode cannot be changed outside of it.
    return "tensor", id(value), 0 if value.is_inference() else value._version  # noqa: SLF001 - there is no other counter


def pack(value: Any) -> Any:
    """Return a value as a checkpoint keeps it: with the tensors on the accelerator marked."""
    if _is(value, Tensor):
        return value if value.device.type == "cpu" else OnDevice(value.detach())
    if _is(value, dict):
        return {key: pack(each) for key, each in value.items()}
    return type(value)(map(pack, value)) if _is(value, (list, tuple)) else value


def unpack(present: Any, saved: Any, device: torch.device) -> Any:
    """Return what an attribute becomes that was saved as :func:`pack` made it.

    Args:
        present: what it is; None if training had put something else in its place.
        saved: what it was.
        device: where tensors go that were on the accelerator.
    """
    if _is(saved, OnDevice):
        saved = saved.array.to(device)
    if _is(saved, Tensor):
        return _filled(present, saved)
    if not _is(saved, (dict, list, tuple)):
        return saved
    before = entries(present)
    new = {key: unpack(_if_trained(before.get(key)), each, device) for key, each in entries(saved).items()}
    if _is(present, dict):
        present.clear()
        present.update(new)
        return present
    if _is(present, list):
        present[:] = new.values()
        return present
    return new if _is(saved, dict) else type(saved)(new.values())


def _if_trained(value: Any) -> Any:
    # An optimizer holds on to what it trains; anything else may have been replaced by the tensor that was saved.
    return value if isinstance(value, Tensor) and value.is_leaf and value.requires_grad else None


def _filled(present: Any, saved: Tensor) -> Tensor:
    """Return the present tensor with the saved content where that is possible, else the saved one."""
    if not isinstance(present, Tensor) or 0 in present.stride():
        return saved
    if (present.shape, present.dtype, present.device) != (saved.shape, saved.dtype, saved.device):
        return saved
    with torch.no_grad():
        return present.copy_(saved)


class ModuleAttributes:
    """What training has changed in modules beside their weights, since they were set up.

    That is numbers in their attributes (``training``, a dropout's ``p``), buffers that are not persistent, which
    parameters take gradients, and which have one: an optimizer acts on a gradient of zero, as it does not on none.

    Args:
        find: returns the modules by name.
    """

    def __init__(self, find: Callable[[], Mapping[str, nn.Module]]) -> None:
        self._find = find
        self._scalars = Attributes(self._owners, lambda _: None)
        self._buffers = dict(_hidden_buffers(find()))
        self._marks = {name: mark_tensor(buffer) for name, (_, _, buffer) in self._buffers.items()}
        self._frozen = {name: parameter.requires_grad for name, parameter in _parameters(find())}

    def changed(self) -> dict[str, Any]:
        """Return what has changed, for the checkpoint."""
        modules = self._find()
        parameters = dict(_parameters(modules))
        buffers = {name: buffer for name, (_, _, buffer) in _hidden_buffers(modules)}
        return {
            "scalars": self._scalars.changed(),
            "buffers": {name: each for name, each in buffers.items() if mark_tensor(each) != self._marks.get(name)},
            "takes_gradient": {
                name: each.requires_grad
                for name, each in parameters.items()
                if self._frozen.get(name) is not each.requires_grad
            },
            "has_gradient": [
                name for name, each in parameters.items() if each.grad is not None and each.grad.layout is torch.strided
            ],
        }

    def _owners(self) -> dict[str, object]:
        return dict(_every_module(self._find()))


def put_module_attributes(modules: Mapping[str, nn.Module], state: Mapping[str, Any], *, strict: bool) -> None:
    """Put back what :meth:`ModuleAttributes.changed` returned.

    Raises:
        CheckpointMismatchError: a module is not there, and ``strict`` is True, as it is to go on training.
    """
    put_attributes(dict(_every_module(modules)), state["scalars"], lambda _, saved: saved, strict=strict)
    for name, (module, attribute, buffer) in list(_hidden_buffers(modules)):
        if name in state["buffers"]:
            # Not setattr, which would go through user code.
            vars(module)["_buffers"][attribute] = _filled(buffer, state["buffers"][name].to(buffer.device))
    if not strict:  # for testing; what follows is for optimizers
        return
    has_gradient = set(state["has_gradient"])
    for name, parameter in _parameters(modules):
        parameter.requires_grad_(state["takes_gradient"].get(name, parameter.requires_grad))
        parameter.grad = torch.zeros_like(parameter) if name in has_gradient else None


def _every_module(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for place, module in modules.items():
        for name, each in module.named_modules():  # pyright: ignore[reportUnknownVariableType] - torch leaves it untyped
            yield f"{place}.{name}" if name else place, each


def _parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for place, module in modules.items():
        for name, parameter in module.named_parameters():
            yield f"{place}.{name}", parameter


def _hidden_buffers(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, tuple[nn.Module, str, Tensor]]]:
    for place, module in _every_module(modules):
        for name in vars(module)["_non_persistent_buffers_set"]:  # there is no other door
            buffer = vars(module)["_buffers"].get(name)
            if buffer is not None:
                yield f"{place}.{name}", (module, name, buffer)
