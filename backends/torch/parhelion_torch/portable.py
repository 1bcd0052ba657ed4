"""What another backend can go on from: weights of a model by name, and the moments of its optimizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam
from torch.optim.swa_utils import AveragedModel

from parhelion.errors import CheckpointMismatchError
from parhelion.training import weights

from .sharded import fitted, whole
from .stateful import fit_optimizer, is_torchmetric, plain_module

__all__ = ["Parts", "fill", "give_moments", "give_portable", "named_weights", "take_moments", "take_portable"]

Array: TypeAlias = npt.NDArray[Any]
Parts: TypeAlias = Mapping[str, "nn.Module | nn.Parameter"]

_log = logging.getLogger("parhelion")

_ADAMS: Final = (Adam, AdamW, NAdam, RAdam)
_ROLES: Final = {"exp_avg": "first", "exp_avg_sq": "second", "momentum_buffer": "momentum"}


# -- a whole model ----------------------------------------------------------------------------------------------------


def take_portable(
    parts: Parts, optimizer: Optimizer | None = None, average: AveragedModel | None = None
) -> dict[str, Any]:
    """Return what a model on another backend can go on from; its tensors are the live ones.

    Args:
        parts: modules and raw parameters by what their names begin with, "" for nothing.
        optimizer: the optimizer; None for none.
        average: the average of the part called ""; None for none.
    """
    named = {name: tensor for name, tensor in named_weights(parts).items() if not is_lazy(tensor)}
    return {
        "weights": named,
        "average": None if average is None else named | named_weights({"": average.module}),
        "moments": None if optimizer is None else take_moments(optimizer, parts),
    }


def give_portable(
    state: Mapping[str, Any],
    weight_map: weights.WeightMap,
    *,
    parts: Parts,
    optimizer: Optimizer | None = None,
    average: AveragedModel | None = None,
    num_updates: int,
) -> None:
    """Give the parts, the optimizer and the average what JAX's model had.

    Args:
        state: what JAX's ``portable_state`` returned.
        weight_map: which array there is which here.
        parts: as for :func:`take_portable`.
        optimizer: as ``setup`` made it; None for none.
        average: the average of the part called ""; None for none. Begins at the weights if JAX had none.
        num_updates: the updates that the run had made.

    Raises:
        CheckpointMismatchError: the weights do not fit, or a lazy module has none yet; names the first that does not,
            and lists the rest. Nothing was changed.
    """
    like = named_weights(parts)
    if without := [name for name, tensor in like.items() if is_lazy(tensor)]:
        raise CheckpointMismatchError(
            f"{without[0]} has no shape yet; expected one, to hold it against another backend's. Give the lazy module "
            "a batch in setup()."
        )
    named, averaged = _to_arrays(state["weights"]), state["average"]
    trained = weight_map.to_torch(named, like=like, num_updates=num_updates)
    if averaged is not None:  # JAX averages parameters alone; running statistics are those of the model
        averaged = weight_map.to_torch(named | _to_arrays(averaged), like=like, num_updates=num_updates)
    if averaged is not None and average is None:
        _log.warning(
            "the other backend's checkpoint has averaged weights, and they are left out: the model averages none"
        )
    moments = _mapped(state["moments"], weight_map, like)
    fill(parts, trained)
    if average is not None:
        fill({"": average.module}, trained if averaged is None else averaged)
        average.n_averaged.fill_(0 if averaged is None else num_updates)
    if optimizer is not None:
        give_moments(optimizer, parts, moments, num_updates)


def _mapped(
    moments: Mapping[str, Any] | None, weight_map: weights.WeightMap, like: Mapping[str, Any]
) -> dict[str, Any] | None:
    if moments is None:
        return None
    named = {role: _to_arrays(moments[role]) for role in _ROLES.values()}
    mapped = {role: weight_map.to_torch(each, like=like, partial=True) for role, each in named.items()}
    return {"count": moments["count"], **mapped}


# -- weights by name --------------------------------------------------------------------------------------------------


def named_weights(parts: Parts) -> dict[str, Tensor]:
    """Return the parameters and buffers of modules, and raw parameters, by name; they are the live ones.

    One that has several names (tied weights) has its first. Metrics inside modules are left out.

    Args:
        parts: modules and raw parameters by what their names begin with, "" for nothing.
    """
    first = _first_names(parts)
    named: dict[str, Tensor] = {}
    for place, part in parts.items():
        for name, tensor in _tensors(place, part):
            if first[id(tensor)] == name:
                named[name] = tensor if is_lazy(tensor) else tensor.detach()
    return named


def fill(parts: Parts, named: Mapping[str, Array]) -> None:
    """Give modules and raw parameters new elements, in the dtypes and on the devices that they have.

    Args:
        parts: as for :func:`named_weights`.
        named: arrays by name and of the shapes here; what is not among them stays as it is.

    Raises:
        CheckpointMismatchError: an integer is too large for its dtype here. Nothing was changed.
    """
    first = _first_names(parts)
    for place, part in parts.items():
        for name, tensor in _tensors(place, part):
            if first[id(tensor)] in named:
                _check_range(name, tensor.dtype, named[first[id(tensor)]])
    for place, part in parts.items():
        given = {
            name: fitted(torch.tensor(named[first[id(tensor)]]), tensor)
            for name, tensor in _tensors(place, part)
            if first[id(tensor)] in named
        }
        if isinstance(part, nn.Parameter):
            with torch.no_grad():
                part.copy_(given.get(place, part))
            continue
        start = len(f"{place}.") if place else 0
        plain_module(part).load_state_dict({name[start:]: each for name, each in given.items()}, strict=False)


def _tensors(place: str, part: nn.Module | nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a part, each by all its names."""
    if isinstance(part, nn.Parameter):
        yield place, part
        return
    module: Any = plain_module(part)
    metrics = tuple(f"{name}." if name else "" for name, each in module.named_modules() if is_torchmetric(each))
    state: dict[str, Any] = module.state_dict(keep_vars=True)
    for name, value in state.items():
        if isinstance(value, Tensor) and not name.startswith(metrics):
            yield f"{place}.{name}" if place else name, value


def _check_range(name: str, dtype: torch.dtype, array: Array) -> None:
    if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool or array.dtype.kind not in "iu":
        return
    limits = torch.iinfo(dtype)
    for found in (int(array.min()), int(array.max())) if array.size else ():
        if not limits.min <= found <= limits.max:
            raise CheckpointMismatchError(
                f"{name} has {found} in the checkpoint and {str(dtype).removeprefix('torch.')} ends at {limits.max}; "
                "expected integers that fit. Give the model a wider dtype there."
            )


def _first_names(parts: Parts) -> dict[int, str]:
    first: dict[int, str] = {}
    for place, part in parts.items():
        for name, tensor in _tensors(place, part):
            first.setdefault(id(tensor), name)
    return first


def _to_arrays(named: Mapping[str, Any]) -> dict[str, Array]:
    return {name: _to_array(value) for name, value in named.items()}


def _to_array(value: Any) -> Array:
    value = whole(value)
    if not isinstance(value, Tensor):
        return np.asarray(value)
    host = value.detach().cpu().resolve_conj().resolve_neg()
    try:
        array: Array = host.numpy()
    except TypeError:  # NumPy has neither bfloat16 nor the kinds of float8; float32 holds them all
        array = host.float().numpy()
    return array


# -- moments ----------------------------------------------------------------------------------------------------------


def take_moments(optimizer: Optimizer, parts: Parts) -> dict[str, Any] | None:
    """Return the moments of Adam, AdamW, NAdam, RAdam or SGD by the names of the parameters, and the updates they saw.

    Args:
        optimizer: any optimizer.
        parts: as for :func:`named_weights`; what the optimizer trains.

    Returns:
        ``count``, ``first``, ``second`` and ``momentum``; ``count`` is 0 for SGD, which keeps none. None for another
        optimizer, and with ``amsgrad``.
    """
    if not _is_portable(optimizer):
        return None
    names = _first_names(parts)
    moments: dict[str, Any] = {"count": 0, "first": {}, "second": {}, "momentum": {}}
    for parameter, state in optimizer.state.items():
        for key, role in _ROLES.items():
            if isinstance(state.get(key), Tensor) and id(parameter) in names:
                moments[role][names[id(parameter)]] = state[key]
        moments["count"] = max(moments["count"], int(state.get("step", 0)))
    return moments


def give_moments(optimizer: Optimizer, parts: Parts, moments: Mapping[str, Any] | None, num_updates: int) -> None:
    """Let an optimizer go on with moments that another had.

    Of other kinds, or if there are none, the optimizer begins anew, which is logged.

    Args:
        optimizer: the optimizer as ``setup`` made it.
        parts: as for :func:`named_weights`; what it trains.
        moments: what :func:`take_moments` returns, as NumPy arrays by the names here; None for none.
        num_updates: the updates that the run had made; at 0 there is nothing to go on with.
    """
    if num_updates == 0:
        return
    there = {role for role in _ROLES.values() if moments is not None and moments[role]}
    if moments is None or not _is_portable(optimizer) or there != _roles(optimizer):
        _log.warning("the optimizer begins anew: its moments are none that the other backend's checkpoint has")
        return
    names, count = _first_names(parts), moments["count"] or num_updates
    state_dict = optimizer.state_dict()
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        for parameter, index in zip(group["params"], saved["params"], strict=True):
            name = names.get(id(parameter))
            state = {key: moments[role][name] for key, role in _ROLES.items() if name in moments[role]}
            if state:
                counts = {} if isinstance(optimizer, SGD) else _counts(optimizer, group, count)
                state_dict["state"][index] = {key: torch.tensor(value) for key, value in (state | counts).items()}
    optimizer.load_state_dict(fit_optimizer(optimizer, state_dict))


def _is_portable(optimizer: Optimizer) -> bool:
    """Return whether an optimizer is of a kind that optax has too."""
    has_more = any(group.get("amsgrad", False) for group in optimizer.param_groups)
    return type(optimizer) in (*_ADAMS, SGD) and not has_more


def _roles(optimizer: Optimizer) -> set[str]:
    """Return what kinds of moments the optimizer keeps."""
    if isinstance(optimizer, SGD):
        return {"momentum"} if any(group["momentum"] for group in optimizer.param_groups) else set()
    return {"first", "second"}


def _counts(optimizer: Optimizer, group: Mapping[str, Any], count: int) -> dict[str, np.float32]:
    """Return what an Adam knows of the updates that it has made."""
    counts = {"step": np.float32(count)}
    if isinstance(optimizer, NAdam):  # its momentum grows with the updates; what it keeps is the product of all
        beta, updates = float(group["betas"][0]), np.arange(1, count + 1)
        factors = beta * (1 - 0.5 * 0.96 ** (updates * float(group["momentum_decay"])))
        counts["mu_product"] = np.float32(np.prod(factors))
    return counts
