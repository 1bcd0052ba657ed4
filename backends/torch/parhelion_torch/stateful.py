"""State of torch's own objects and torchmetrics', taken and given back in full."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from parhelion.errors import CheckpointMismatchError
from parhelion.training import entries

from .sharded import StoredTensor, fitted, whole

__all__ = [
    "check_part",
    "check_weights",
    "fit_optimizer",
    "give_part",
    "give_weights",
    "has_weights",
    "is_own_part",
    "plain_module",
    "take_part",
    "take_weights",
    "walk",
]

T = TypeVar("T")
_AS_IT_WAS = "Build the model as it was when it was saved."
_SHOWN = 5  # differences in a message


def is_own_part(part: Any) -> bool:
    """Return whether :func:`take_part` knows how to take the state of a part."""
    return isinstance(part, torch.Generator) or hasattr(part, "state_dict")


def is_torchmetric(part: Any) -> bool:
    """Return whether a part is a metric of torchmetrics, told by what it has: the library may not be installed."""
    return hasattr(part, "persistent") and hasattr(part, "_update_count")


def walk(place: str, value: Any, kind: type[T]) -> Iterator[tuple[str, T]]:
    """Yield what is of ``kind`` in ``value``, itself or what lists, tuples and dictionaries hold, with its place."""
    if isinstance(value, kind):
        yield place, value
        return
    for key, each in entries(value).items():
        yield from walk(f"{place}.{key}", each, kind)


def plain_module(module: nn.Module) -> nn.Module:
    """Return the module that was compiled or replicated, whose weights have the names that they have without it."""
    while True:
        holder = "module" if isinstance(module, DistributedDataParallel) else "_orig_mod"
        inner: nn.Module = getattr(module, holder, module)
        if inner is module:
            return module
        module = inner


# -- modules and raw parameters: what has weights ---------------------------------------------------------------------


def has_weights(part: Any) -> bool:
    """Return whether a part is a module, other than a metric, or a parameter."""
    return isinstance(part, (nn.Module, nn.Parameter)) and not is_torchmetric(part)


def take_weights(part: nn.Module | nn.Parameter) -> Any:
    """Return the whole state of a module, or a parameter itself.

    A metric of torchmetrics inside a module leaves its accumulators out of the state unless told to keep them.
    """
    if isinstance(part, nn.Parameter):
        return part
    module = plain_module(part)
    _keep_accumulators(module)
    return module.state_dict()


def check_weights(where: str, part: nn.Module | nn.Parameter, state: Any, *, dtypes: bool = True) -> None:
    """Refuse a state of another module or parameter.

    Args:
        where: what the message calls the part.
        part: the module or parameter.
        state: what :func:`take_weights` returned.
        dtypes: whether the element types must agree too.

    Raises:
        CheckpointMismatchError: names, shapes or dtypes differ; lists all that do.
    """
    there: Any = {"it": state} if isinstance(state, (Tensor, StoredTensor)) else state
    here: Any = {"it": part} if isinstance(part, nn.Parameter) else take_weights(part)
    if not isinstance(there, Mapping):
        raise CheckpointMismatchError(f"the checkpoint's {where} has no weights. {_AS_IT_WAS}")
    mine, theirs = _tensors(here), _tensors(there)  # pyright: ignore[reportUnknownArgumentType]
    # How much a metric has seen is part of its shapes.
    names = [*mine, *(name for name in theirs if name not in mine)]
    metrics = () if isinstance(part, nn.Parameter) else tuple(name for name, _ in _metrics_in(plain_module(part)))
    found = (_difference(name, mine, theirs, dtypes=dtypes) for name in names if not name.startswith(metrics))
    differences = [each for each in found if each is not None]
    if differences:
        shown = "; ".join(differences[:_SHOWN])
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise CheckpointMismatchError(f"the checkpoint's {where} is of another model: {shown}{more}. {_AS_IT_WAS}")


def give_weights(where: str, part: nn.Module | nn.Parameter, state: Any) -> None:
    """Give a module or a parameter back what :func:`take_weights` returned.

    Raises:
        CheckpointMismatchError: it cannot take it.
    """
    if isinstance(part, nn.Parameter):
        with torch.no_grad():
            part.copy_(fitted(state, part))
        return
    module = plain_module(part)
    _keep_accumulators(module)
    try:
        module.load_state_dict(_fitted_weights(module, state))
    except RuntimeError as error:
        raise CheckpointMismatchError(f"the checkpoint's {where} does not fit: {error}. {_AS_IT_WAS}") from error


def _fitted_weights(module: nn.Module, state: Any) -> Any:
    """Return a state with every tensor as the module can take it, and what torch keeps beside them."""
    own = module.state_dict()
    ready = copy.copy(state)
    for name, value in state.items():
        ready[name] = fitted(value, own.get(name))
    return ready


def _keep_accumulators(module: nn.Module) -> None:
    for _, metric in _metrics_in(module):
        metric.persistent(mode=True)


def _metrics_in(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield torchmetrics' metrics in a module, each with what the names of its state begin with."""
    for name, each in module.named_modules():  # pyright: ignore[reportUnknownVariableType] - torch leaves it untyped
        if is_torchmetric(each):
            yield f"{name}." if name else "", each


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor | StoredTensor]:
    return {name: value for name, value in state.items() if isinstance(value, (Tensor, StoredTensor))}


def _difference(name: str, here: Mapping[str, Any], there: Mapping[str, Any], *, dtypes: bool) -> str | None:
    if name not in there:
        return f"{name} is missing in the checkpoint"
    if name not in here:
        return f"{name} is only in the checkpoint"
    if is_lazy(here[name]):  # it has a shape once it has seen a batch, or has been loaded
        return None
    mine, theirs = _kind(here[name], dtypes=dtypes), _kind(there[name], dtypes=dtypes)
    return None if mine == theirs else f"{name} is {mine} here and {theirs} there"


def _kind(tensor: Tensor | StoredTensor, *, dtypes: bool) -> str:
    shape = str(tuple(tensor.shape))
    return f"{shape} of {str(tensor.dtype).removeprefix('torch.')}" if dtypes else shape


# -- optimizers, schedulers, scalers, metrics -------------------------------------------------------------------------


def take_part(part: Any) -> Any:
    """Return the whole state of an optimizer, a scheduler, a scaler, a metric or a generator, with its kind."""
    if part is None:
        return None
    if isinstance(part, torch.Generator):
        state: Any = part.get_state()
    elif is_torchmetric(part):
        state = {"state": take_weights(part), "updates": part._update_count}  # noqa: SLF001 - it has no other door
    else:
        state = part.state_dict()
    return {"kind": type(part).__name__, "state": state}


def check_part(where: str, part: Any, state: Any) -> None:
    """Refuse a state that :func:`take_part` took from another kind of part.

    Raises:
        CheckpointMismatchError: there is a part here and none there or the other way round, or it is of another kind,
            or an optimizer has other parameters.
    """
    if (part is None) != (state is None):
        here, there = ("none", "one") if part is None else ("one", "none")
        raise CheckpointMismatchError(f"the model has {here} and the checkpoint {there}: {where}. {_AS_IT_WAS}")
    if part is None:
        return
    kind, saved = type(part).__name__, entries(state).get("kind")
    if saved != kind:
        raise CheckpointMismatchError(f"{where} is of {kind} here and of {saved} in the checkpoint. {_AS_IT_WAS}")
    if isinstance(part, torch.optim.Optimizer):
        _check_optimizer(where, part, state["state"])


def give_part(where: str, part: Any, state: Any) -> None:
    """Give a part the state that :func:`take_part` took.

    Raises:
        CheckpointMismatchError: the part cannot take it.
    """
    if part is None:
        return
    try:
        if isinstance(part, torch.Generator):
            part.set_state(state["state"])
        elif is_torchmetric(part):
            give_weights(where, part, state["state"]["state"])
            part._update_count = state["state"]["updates"]  # noqa: SLF001 - it has no other door
        elif isinstance(part, torch.optim.Optimizer):
            saved = fit_optimizer(part, state["state"])
            part.load_state_dict(saved)
            _keep_dtypes(part, saved)
        else:
            part.load_state_dict(state["state"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointMismatchError(
            f"the checkpoint's {where} does not fit {type(part).__name__}: {error}. {_AS_IT_WAS}"
        ) from error


def fit_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state with every tensor as its parameter can take it.

    What has a parameter's shape is spread as the parameter is; the rest is whole everywhere.
    """
    entries_of = dict(state["state"])
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, index in zip(group["params"], saved["params"], strict=True):
            if index in entries_of:
                entries_of[index] = {name: _fitted_to(parameter, each) for name, each in entries_of[index].items()}
    return {**state, "state": entries_of}


def _fitted_to(parameter: Tensor, value: Any) -> Any:
    has_shape = isinstance(value, (Tensor, StoredTensor)) and tuple(value.shape) == tuple(parameter.shape)
    return fitted(value, parameter) if has_shape else whole(value)


def _check_optimizer(where: str, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    here = [len(group["params"]) for group in optimizer.param_groups]
    there = [len(group["params"]) for group in state["param_groups"]]
    if here != there:
        raise CheckpointMismatchError(
            f"the parameters of {where} are {here} by group here and {there} in the checkpoint. {_AS_IT_WAS}"
        )


def _keep_dtypes(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give state back in the dtype that it was saved in: torch casts all of it to the parameter's, which loses bits."""
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, index in zip(group["params"], saved["params"], strict=True):
            present = optimizer.state.get(parameter, {})
            for name, value in state["state"].get(index, {}).items():
                if (
                    isinstance(value, Tensor)
                    and isinstance(present[name], Tensor)
                    and present[name].dtype != value.dtype
                ):
                    present[name] = value.to(present[name].device, copy=True)
