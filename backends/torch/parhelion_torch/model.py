"""Model for torch: the explicit way."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from parhelion.errors import CheckpointMismatchError
from parhelion.training import Model as CoreModel
from parhelion.training import TrainingState

from .attributes import ModuleAttributes, mark_tensor, pack, put_module_attributes, unpack
from .distribution import Replicated, check_ddp_options, find_replica, is_trained, share_buffers
from .sharded import is_spread
from .stateful import (
    check_part,
    check_weights,
    give_part,
    give_weights,
    has_weights,
    is_own_part,
    plain_module,
    take_part,
    take_weights,
    walk,
)
from .world import leave_at_exit

__all__ = ["Model"]

_NO_PARTS = {"_modes", "_replicas"}


class Model(CoreModel):
    """The explicit way: you write ``train_step`` and own every line of it.

    What ``setup`` assigns to ``self`` stays on the device that you put it on. Saved and restored by themselves are
    modules, raw parameters, optimizers, schedulers, scalers, metrics and generators, also in lists and dictionaries;
    tensors, arrays and numbers in ``self`` that training changes; and in modules ``training``, ``requires_grad`` and
    numbers such as a dropout's ``p``.

    On several processes pass what is trained through :meth:`distribute`.

    Attributes:
        ddp_options: further arguments of ``DistributedDataParallel``, such as ``find_unused_parameters``.
    """

    def __init__(self, save_name: str) -> None:
        super().__init__(save_name)
        self.ddp_options: dict[str, Any] = {}
        self._modes: list[tuple[nn.Module, bool]] = []
        self._module_attributes: ModuleAttributes | None = None
        self._replicas: list[DistributedDataParallel] = []

    # -- several processes --------------------------------------------------------------------------------------------

    def distribute(self, module: nn.Module) -> nn.Module:
        """Return the module as several processes train it together; on one process it is unchanged.

        It has the first process's weights everywhere, and a backward pass through it averages the gradients of all.
        Checkpoints hold it as if it were not wrapped. One that is spread over processes (``fully_shard``) averages by
        itself and is returned as it is, as is one in which nothing takes gradients.

        Args:
            module: on the device where it trains.

        Raises:
            InvalidValueError: it has lazy parameters without a shape.
            InvalidTypeError: ``ddp_options`` are no arguments by name.
        """
        if not self.is_distributed or is_spread(module) or not is_trained(module):
            return module
        replica = find_replica(module)
        if replica is None:
            module = replica = Replicated(module, **check_ddp_options(self.ddp_options))
        self._replicas.append(replica)
        return module

    def gradient_sync(self, state: TrainingState) -> AbstractContextManager[Any]:
        """Return the context for forward and backward of one batch: with accumulation, modules that came out of
        :meth:`distribute` average the gradients once for each update.

        Args:
            state: as :meth:`train_step` gets it.
        """  # noqa: D205 - one sentence that needs two lines
        return nullcontext() if state.is_update or not self._replicas else _without_sync(self._replicas)

    def start_setup(self) -> None:
        """Forget what an earlier :meth:`setup` made."""
        super().start_setup()
        self._replicas = []
        if self.is_distributed:
            leave_at_exit(self)

    def let_go(self) -> None:
        """Drop what :meth:`setup` made, at the end of the program: it holds on to the other processes."""
        for name in [*CoreModel.stateful_parts(self), *_NO_PARTS, "_module_attributes"]:
            vars(self).pop(name, None)

    def shared_buffers(self) -> list[Tensor]:
        """Return the buffers that each process has its own version of, as after a batch normalization's step."""
        return [buffer for replica in self._replicas for buffer in plain_module(replica).buffers()]

    # -- modes --------------------------------------------------------------------------------------------------------

    def evaluating(self) -> AbstractContextManager[Any]:
        """Return the context that evaluation runs in: without gradients, with the first process's buffers."""
        share_buffers(self.shared_buffers())
        return torch.no_grad()

    def train(self) -> None:
        """Switch every module to training mode; after an evaluation, to the mode that it was in before."""
        if not self._modes:
            for module in self.modules().values():
                module.train()
        for part, training in self._modes:
            part.training = training
        self._modes = []

    def eval(self) -> None:
        """Switch every module to evaluation mode."""
        if not self._modes:
            self._modes = [(part, part.training) for module in self.modules().values() for part in module.modules()]
        for module in self.modules().values():
            module.eval()

    def modules(self) -> dict[str, nn.Module]:
        """Return every module of the model, by the attribute, or the place in it, that holds it."""
        return {
            place: plain_module(module)
            for name, value in self.stateful_parts().items()
            for place, module in walk(name, value, nn.Module)
        }

    # -- parts --------------------------------------------------------------------------------------------------------

    def stateful_parts(self) -> dict[str, Any]:
        """Return every attribute that is a part, or a container with one in it, by name."""
        return {name: value for name, value in super().stateful_parts().items() if name not in _NO_PARTS}

    def is_stateful_part(self, value: Any) -> bool:
        """Return whether something has state that a checkpoint must hold."""
        return super().is_stateful_part(value) or isinstance(value, (torch.Generator, nn.Parameter))

    def take_state(self, part: Any) -> Any:
        """Return the whole state of a module, a parameter, an optimizer, a metric or the like."""
        if has_weights(part):
            return take_weights(part)
        return take_part(part) if is_own_part(part) else super().take_state(part)

    def check_state(self, where: str, part: Any, state: Any) -> None:
        """Raise CheckpointMismatchError if a state, saved at the place called ``where``, is not one of this part."""
        if has_weights(part):
            check_weights(where, part, state)
        elif is_own_part(part):
            check_part(where, part, state)

    def give_state(self, where: str, part: Any, state: Any) -> None:
        """Give one part its state back.

        Raises:
            CheckpointMismatchError: the part cannot take it.
        """
        if has_weights(part):
            give_weights(where, part, state)
        elif is_own_part(part):
            give_part(where, part, state)
        else:
            super().give_state(where, part, state)

    def load_weights(self, state_dict: dict[str, Any]) -> None:
        """Take only the weights, those of modules and raw parameters, out of what :meth:`state_dict` returned.

        Raises:
            CheckpointMismatchError: they are not those of this model; names what differs. Nothing was changed.
        """
        with_weights = {
            name
            for name, value in self.stateful_parts().items()
            if any(isinstance(part, nn.Parameter) or part.state_dict() for part in _weights_in(name, value))
        }
        if missing := sorted(with_weights - set(state_dict)):
            raise CheckpointMismatchError(
                f"the checkpoint has no weights of {', '.join(missing)}; it has the parts {sorted(state_dict)}. "
                "Build the model as it was when it was saved."
            )

        def check(where: str, part: Any, state: Any) -> None:
            if has_weights(part):
                check_weights(where, part, state, dtypes=False)

        def give(where: str, part: Any, state: Any) -> None:
            if has_weights(part):
                give_weights(where, part, state)

        for act in (check, give):
            self.visit_parts({name: state_dict[name] for name in with_weights}, act)

    # -- attributes ---------------------------------------------------------------------------------------------------

    def watch_attributes(self) -> None:
        """From now on, know which attributes change, those of modules too."""
        super().watch_attributes()
        self._module_attributes = ModuleAttributes(self.modules)

    def changed_attributes(self) -> dict[str, Any]:
        """Return the attributes that the run has changed, for the checkpoint."""
        own = {
            owner: {name: (is_same, pack(value)) for name, (is_same, value) in values.items()}
            for owner, values in super().changed_attributes().items()
        }
        return {"own": own, "modules": None if self._module_attributes is None else self._module_attributes.changed()}

    def put_attributes(self, state: Mapping[str, Any], fast_init: bool = False) -> None:
        """Put back what :meth:`changed_attributes` returned.

        Raises:
            CheckpointMismatchError: one belongs to a module that this model has not, and ``fast_init`` is False.
        """
        super().put_attributes(state["own"], fast_init)
        if state["modules"] is not None:
            put_module_attributes(self.modules(), state["modules"], strict=not fast_init)

    def mark_value(self, value: Any) -> Hashable | None:
        """Return what tells one content of a tensor or an array from another; None for what is neither."""
        mark = mark_tensor(value)
        return super().mark_value(value) if mark is None else mark

    def put_value(self, present: Any, saved: Any) -> Any:
        """Return what an attribute becomes, given what it is (None if it had been replaced) and what it was."""
        return super().put_value(present, unpack(present, saved, torch.device(self.device)))

    def describe(self) -> Mapping[str, str]:
        """Return the number of parameters; shared ones count once."""
        return {"parameters": f"{self._count_parameters():,}"}

    def _count_parameters(self) -> int:
        found = {id(each): each for module in self.modules().values() for each in module.parameters()}
        for place, value in self.stateful_parts().items():
            found |= {id(each): each for _, each in walk(place, value, nn.Parameter)}
        return sum(each.numel() for each in found.values())


@contextmanager
def _without_sync(replicas: list[DistributedDataParallel]) -> Generator[None]:
    with ExitStack() as stack:
        for replica in replicas:
            stack.enter_context(replica.no_sync())
        yield


def _weights_in(place: str, value: Any) -> Iterator[nn.Module | nn.Parameter]:
    """Yield the modules and raw parameters in ``value``."""
    found: list[nn.Module | nn.Parameter] = [each for _, each in walk(place, value, nn.Module)]
    found += [each for _, each in walk(place, value, nn.Parameter)]
    yield from filter(has_weights, found)
