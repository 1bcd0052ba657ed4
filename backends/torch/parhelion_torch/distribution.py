"""Gradients and buffers of several processes: what averages them, and what holds of tensors that are spread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from parhelion.errors import InvalidTypeError, InvalidValueError

from .placement import move
from .sharded import as_spread
from .stateful import plain_module

__all__ = [
    "Remainder",
    "Replicated",
    "check_ddp_options",
    "check_spread",
    "clip_gradients",
    "find_remainder",
    "find_replica",
    "first_known",
    "is_trained",
    "share_buffers",
    "share_first",
]

_get: Callable[..., Any] = nn.Module.__getattr__  # pyright: ignore[reportAssignmentType]
_group: Any = torch.distributed  # its functions have no types
Tensors: TypeAlias = Sequence[Tensor]


class Replicated(DistributedDataParallel):
    """``DistributedDataParallel`` whose backward passes average gradients, and that is the plain module otherwise.

    Without gradients the module is called directly, so that processes with another number of batches to evaluate do
    not wait for each other. Numbers, strings and tensors in the module's attributes can be read through it; its methods
    cannot be called, since gradients of what bypasses ``forward`` would not be averaged.

    Args:
        module: the module, on its device; its parameters and buffers become those of the first process.
        options: further arguments of ``DistributedDataParallel``.
    """

    def __init__(self, module: nn.Module, **options: Any) -> None:
        cast("Any", super()).__init__(module, **options)
        self._is_made = True

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Return what the module makes of the inputs."""
        if torch.is_grad_enabled():
            return cast("Any", super()).forward(*inputs, **kwargs)
        return cast("Any", self).module(*inputs, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return the wrapped module's attribute where this has none."""
        try:
            return _get(self, name)
        except AttributeError:
            if name.startswith("_") or "_is_made" not in vars(self):
                raise
        value: Any = getattr(_get(self, "module"), name)
        if callable(value) and not isinstance(value, Tensor):
            raise AttributeError(  # noqa: TRY004 - what asks for an attribute expects this one
                f"{name} of the module was asked for in a training step of several processes, where only a call of "
                "the module itself averages gradients; expected self.module(...). Let its forward call it."
            )
        return value


def find_replica(module: nn.Module) -> DistributedDataParallel | None:
    """Return the wrapper that a module is in, also where that was compiled; None if there is none."""
    while not isinstance(module, DistributedDataParallel):
        inner: Any = getattr(module, "_orig_mod", None)
        if inner is None:
            return None
        module = inner
    return module


def is_trained(module: nn.Module) -> bool:
    """Return whether a module has a parameter that takes gradients.

    Raises:
        InvalidValueError: one has no shape yet, so that processes cannot be given the same.
    """
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise InvalidValueError(
            f"{type(module).__name__} has lazy parameters without a shape and several processes train together; "
            "expected shapes. Give the module a batch in setup()."
        )
    return any(parameter.requires_grad for parameter in module.parameters())


def check_ddp_options(options: Any) -> Mapping[str, Any]:
    """Return the options if they are arguments by name.

    Raises:
        InvalidTypeError: they are not.
    """
    if not isinstance(options, Mapping):
        raise InvalidTypeError(
            f"ddp_options is {options!r}; expected arguments of DistributedDataParallel by name, such as "
            "{'find_unused_parameters': True}."
        )
    return options  # pyright: ignore[reportUnknownVariableType]


class Remainder:
    """What several processes train and no wrapper averages: raw parameters, further modules, unfrozen ones.

    Args:
        parameters: what the optimizer trains outside of the wrappers.
        buffers: the buffers of the modules that have them.
    """

    def __init__(self, parameters: Iterable[Tensor], buffers: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self.buffers = list(buffers)

    def __bool__(self) -> bool:
        """Return whether there is anything."""
        return bool(self._parameters or self.buffers)

    def share(self) -> None:
        """Give every process what the first one has."""
        share_first([*self._parameters, *self.buffers])

    def average(self) -> None:
        """Give every process the mean of all gradients, and the first one's buffers; all must call it together.

        A parameter without a gradient counts as zero, and keeps none if no process has one.
        """
        for parameters in _by_device(self._parameters):
            known = torch.tensor([each.grad is not None for each in parameters], dtype=torch.uint8)
            known = known.to(parameters[0].device)
            _group.all_reduce(known, _group.ReduceOp.MAX)
            is_known = cast("list[int]", known.tolist())  # pyright: ignore[reportUnknownMemberType]
            trained = [each for each, is_there in zip(parameters, is_known, strict=True) if is_there]
            for each in trained:
                if each.grad is None:
                    each.grad = torch.zeros_like(each)
            _average([each.grad for each in trained if each.grad is not None])
        share_buffers(self.buffers)


def find_remainder(
    optimizer: torch.optim.Optimizer, modules: Iterable[nn.Module], replica: DistributedDataParallel | None
) -> Remainder:
    """Return what an optimizer trains beside what a wrapper averages, or what is spread over processes.

    Args:
        optimizer: what trains.
        modules: all modules that there are.
        replica: the wrapper; None for none.
    """
    covered: set[int] = set()
    if replica is not None:
        covered = {id(each) for each in replica.parameters() if each.requires_grad}
    trained = {id(each): each for group in optimizer.param_groups for each in group["params"]}
    others = [each for key, each in trained.items() if key not in covered and as_spread(each) is None]
    own = None if replica is None else plain_module(replica)
    in_training = [each for each in modules if each is not own and any(id(one) in trained for one in each.parameters())]
    return Remainder(others, [buffer for each in in_training for buffer in each.buffers()])


def check_spread(ema_decay: float | None, dtype: torch.dtype | None) -> None:
    """Refuse what does not work for a module that is spread over processes.

    Raises:
        InvalidValueError: its weights are to be averaged, or trained in float16.
    """
    for name, value, way_out in (
        ("ema_decay", ema_decay, "Leave it out: torch cannot copy such a module."),
        ("precision", "float16" if dtype is torch.float16 else None, "Use 'bfloat16', which needs no gradient scaler."),
    ):
        if value is not None:
            raise InvalidValueError(
                f"{name} is {value!r} and the module is spread over processes (fully_shard); expected a value that "
                f"works with that. {way_out}"
            )


def share_buffers(buffers: Tensors) -> None:
    """Give every process the first one's buffers; without any nothing is sent."""
    if buffers:
        share_first(buffers)


def share_first(tensors: Tensors) -> None:
    """Give every process what the first one has, bit for bit; all must call it together."""
    with torch.no_grad():
        for group in _by_device(tensors):
            sent = torch.cat([each.detach().contiguous().reshape(-1).view(torch.uint8) for each in group])
            _group.broadcast(sent, 0)
            sizes = [each.numel() * each.element_size() for each in group]
            for each, part in zip(group, torch.split(sent, sizes), strict=True):
                # A copy lies where its elements may begin.
                each.copy_(part.clone().view(each.dtype).reshape(each.shape))


def first_known(value: Any) -> Any:
    """Return the value, or in a process that has None what the first process has that has one, on the CPU.

    All must call it together, and one must have a value.
    """
    known: list[Any] = [None] * _group.get_world_size()
    _group.all_gather_object(known, value is not None)
    if all(known):
        return value
    source = known.index(True)
    sent = [move(value, torch.device("cpu")) if _group.get_rank() == source else None]
    _group.broadcast_object_list(sent, source)
    return sent[0] if value is None else value


def _average(gradients: Tensors) -> None:
    kinds: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
    for each in gradients:
        if each.layout is not torch.strided:
            raise InvalidTypeError(
                f"a gradient outside of self.module is sparse ({each.layout}) and several processes train together; "
                "expected a dense one. Make the parameter part of self.module."
            )
        kinds[each.dtype].append(each)
    for kind in kinds.values():
        together = torch.cat([each.reshape(-1) for each in kind])
        _group.all_reduce(together)
        together /= _group.get_world_size()
        sizes = [each.numel() for each in kind]
        for each, part in zip(kind, torch.split(together, sizes), strict=True):
            each.copy_(part.reshape(each.shape))


def _by_device(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    found: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
    for each in tensors:
        found[each.device].append(each)
    yield from found.values()


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scale the gradients of all parameters so that the norm of all together is at most ``max_norm``.

    Plain tensors and those that are spread over different meshes count together.
    """
    kinds: defaultdict[Any, list[Tensor]] = defaultdict(list)
    for each in parameters:
        if each.grad is not None:
            spread = as_spread(each)
            kinds[None if spread is None else spread.device_mesh].append(each)
    if len(kinds) <= 1:
        for kind in kinds.values():
            nn.utils.clip_grad_norm_(kind, max_norm)
        return
    norms = [_whole_norm([each.grad for each in kind if each.grad is not None]) for kind in kinds.values()]
    total = torch.stack([norm.to(norms[0].device) for norm in norms]).square().sum().sqrt()
    for kind in kinds.values():
        nn.utils.clip_grads_with_norm_(kind, max_norm, total)


def _whole_norm(gradients: Tensors) -> Tensor:
    norm = nn.utils.get_total_norm(gradients)
    spread = as_spread(norm)
    return norm if spread is None else spread.full_tensor()
