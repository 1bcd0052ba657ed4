"""LossModel: the short way to write a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from parhelion.errors import CheckpointMismatchError, InvalidTypeError, InvalidValueError
from parhelion.training import Scored, TrainingState

from .distribution import Remainder, check_spread, clip_gradients, find_remainder, find_replica, first_known
from .model import Model
from .placement import move
from .portable import Parts, give_portable, take_portable
from .schedules import Scheduled, as_scheduled
from .sharded import is_spread
from .stateful import check_part, check_weights, give_part, give_weights, plain_module, take_part, take_weights, walk

__all__ = ["LossModel"]

Loss: TypeAlias = "Tensor | tuple[Tensor, Any]"

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What this class saves by itself; anything else with state is saved as in any model.
_OWN = {
    *("module", "optimizer", "schedules", "metrics"),
    *("_average", "_trained", "_scaler", "_scheduled", "_strays", "_replica"),
}


class LossModel(Scored, Model):
    """The short way: you give ``setup`` and ``loss``; forward, backward, accumulation, precision, clipping, update,
    averaging and evaluation are done for you.

    ``setup`` assigns ``self.module`` and ``self.optimizer``, and may assign ``self.schedules`` and ``self.metrics``,
    and further modules, which are trained if the optimizer has their parameters. Modules are moved to the device
    afterwards. ``loss(batch)`` returns the batch's mean loss, or ``(loss, outputs)``: in evaluation each metric is
    updated with ``outputs`` (a tuple of arguments, or a mapping from a metric's name to its tuple).

    On several processes every one has the first one's weights at the start, and gradients are averaged:
    ``self.module``, called as a whole, by ``DistributedDataParallel`` (see ``ddp_options``), anything else that the
    optimizer trains before each update. Apply ``fully_shard`` in ``setup`` to spread a module over them instead.

    Args:
        save_name: names the folder of this model's checkpoints.
        precision: "float32"; or "bfloat16" or "float16" for automatic mixed precision, with a gradient scaler for
            float16.
        clip_norm: the largest allowed norm of the whole gradient, of all that the optimizer trains.
        ema_decay: decay in (0, 1) of an exponential moving average of the module's weights, which evaluation then uses.
        monitor: the validation value that says whether a validation is an improvement ("valid_loss").
        mode: whether a "min" or a "max" of it is better.

    Attributes:
        module: the network.
        optimizer: its optimizer.
        schedules: a schedule from ``parhelion.schedules``, a scheduler of torch, or a list of these; see
            ``per_update``, ``per_epoch`` and ``on_metric`` for when each is stepped. Plain ones are stepped per update,
            ReduceLROnPlateau after each validation.
        metrics: metrics by name, this package's or torchmetrics'.

    Raises:
        InvalidValueError: an argument is out of range.
    """  # noqa: D205 - one sentence that needs two lines

    def __init__(
        self,
        save_name: str,
        *,
        precision: Literal["float32", "bfloat16", "float16"] = "float32",
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        super().__init__(save_name, clip_norm=clip_norm, ema_decay=ema_decay, monitor=monitor, mode=mode)
        if precision not in _DTYPES:
            raise InvalidValueError(f"precision is {precision!r}; expected one of {', '.join(map(repr, _DTYPES))}.")
        self.module: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.schedules: Any = None
        self._dtype = _DTYPES[precision]
        self._average: AveragedModel | None = None
        self._trained: nn.Module | None = None
        self._strays: list[nn.Parameter] = []
        self._scaler: torch.amp.GradScaler | None = None  # pyright: ignore[reportPrivateImportUsage]
        self._scheduled: list[Scheduled] = []
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._replica: nn.Module | None = None
        self._remainder: Remainder | None = None
        self._is_spread = False
        self._kept: Callable[[], Any] | None = None

    # -- for the user -------------------------------------------------------------------------------------------------

    def loss(self, batch: Any) -> Loss:
        """Return the mean loss of one batch, or ``(loss, outputs)``.

        Raises:
            InvalidTypeError: the model does not define it.
        """
        raise InvalidTypeError(f"{type(self).__name__} defines no loss(batch); a LossModel needs one.")

    # -- set-up -------------------------------------------------------------------------------------------------------

    def finish_setup(self, fast_init: bool = False) -> None:
        """Check what ``setup`` made, move it to the device, and make the average and the scaler.

        Raises:
            InvalidTypeError: the module, the optimizer or the schedules are none.
            InvalidValueError: a schedule does not fit the optimizer; or the module is spread over processes, and
                asks for what does not work there.
        """
        module, optimizer, device = self.module, self.optimizer, torch.device(self.device)
        if not isinstance(module, nn.Module):
            raise InvalidTypeError(f"self.module is {module!r} after setup(); expected a torch.nn.Module.")
        if not isinstance(optimizer, torch.optim.Optimizer) and not (fast_init and optimizer is None):
            raise InvalidTypeError(f"self.optimizer is {optimizer!r} after setup(); expected a torch optimizer.")
        for each in [module, *self.modules().values(), *self.metrics.values()]:
            # Also metrics, where they are torchmetrics'. What is spread over processes is where it belongs.
            if isinstance(each, nn.Module) and not is_spread(each):
                each.to(device)
        self._average, self._trained, self._scaler, self._scheduled, self._best = None, None, None, [], None
        self._replica, self._remainder, self._kept = None, None, None
        self._is_spread = is_spread(module)
        if self._is_spread:
            check_spread(self._ema_decay, self._dtype)
        if optimizer is not None and self.is_distributed and not fast_init:
            self._join_others(optimizer, module)
        if self._ema_decay is not None:
            average: Any = get_ema_multi_avg_fn(self._ema_decay)  # type: ignore[no-untyped-call]
            self._average = AveragedModel(plain_module(module), multi_avg_fn=average)
        self._finish_precision(device)
        if optimizer is not None:
            self._scheduled = as_scheduled(self.schedules, optimizer, self.monitor)
            self._finish_optimizer(optimizer, module)

    def _finish_precision(self, device: torch.device) -> None:
        if self._dtype is not None:
            kind, dtype = device.type, self._dtype
            self._autocast = lambda: torch.autocast(kind, dtype)
        if self._dtype is torch.float16:
            self._scaler = torch.amp.GradScaler(device.type)  # pyright: ignore[reportPrivateImportUsage]

    def _join_others(self, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        """Give every process the same weights, and see that all gradients will be averaged."""
        replica = self.distribute(module)
        inner = find_replica(replica)
        self._replica = None if inner is None else replica
        if inner is not None and replica is module:
            # What the user has wrapped is for training; evaluation goes by the plain module.
            self.module = plain_module(module)
        self._remainder = find_remainder(optimizer, self.modules().values(), inner)
        self._remainder.share()

    def _finish_optimizer(self, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        if optimizer.state:  # some optimizers make theirs at once, where the parameters were then
            give_part("optimizer", optimizer, take_part(optimizer))
        trained = {id(each) for group in optimizer.param_groups for each in group["params"]}
        self._strays = [each for each in module.parameters() if id(each) not in trained]

    def train(self) -> None:
        """Switch to training mode, on the weights that are trained."""
        self._kept = None
        if self._trained is not None:
            self.module, self._trained = self._trained, None
        super().train()

    def eval(self) -> None:
        """Switch to evaluation mode, on the averaged weights where there are any."""
        self._kept = None
        super().eval()
        if self._average is not None and self._trained is None:
            self._trained, self.module = self._net, self._average.module
            self._net.eval()

    def modules(self) -> dict[str, nn.Module]:
        """Return the module that is trained, and any other that ``setup`` has made."""
        return {"module": plain_module(self._trained_net), **super().modules()}

    def shared_buffers(self) -> list[Tensor]:
        """Return the buffers that each process has its own version of, as after a batch normalization's step."""
        others = [] if self._remainder is None else self._remainder.buffers
        averaged = [] if self._average is None or self._remainder is None else list(self._average.module.buffers())
        return [*super().shared_buffers(), *others, *averaged]

    def let_go(self) -> None:
        """Drop what :meth:`setup` made, at the end of the program."""
        super().let_go()
        vars(self).pop("_remainder", None)

    @property
    def _net(self) -> nn.Module:
        return cast("nn.Module", self.module)

    @property
    def _trained_net(self) -> nn.Module:
        """The module that is trained, also while evaluation uses the averaged one."""
        return self._net if self._trained is None else self._trained

    # -- steps --------------------------------------------------------------------------------------------------------

    def train_step(self, batch: Any, state: TrainingState) -> Any:
        """Train on one batch; the optimizer steps when the accumulation group is complete."""
        loss = self._backward(batch, state) if self._replica is None else self._backward_together(batch, state)
        if state.is_update:
            self._update(state)
        return loss

    def _backward_together(self, batch: Any, state: TrainingState) -> Any:
        """Add a batch's gradients, averaged over the processes in the last batch of an update."""
        plain, self.module = self.module, self._replica
        try:
            with self.gradient_sync(state):
                return self._backward(batch, state)
        finally:
            self.module = plain

    def _backward(self, batch: Any, state: TrainingState) -> Any:
        """Add a batch's gradients, and return its loss."""
        with self._autocast():
            loss = self.loss(batch)
        if isinstance(loss, tuple):
            loss = loss[0]
        _check_loss(loss)
        share = loss if state.loss_weight == 1.0 else loss * state.loss_weight
        if self._scaler is not None:
            share = self._scaler.scale(share)
        share.backward()  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownMemberType]
        return loss

    def _update(self, state: TrainingState) -> None:
        """Step the optimizer on what the group has accumulated."""
        optimizer = cast("torch.optim.Optimizer", self.optimizer)
        for scheduled in self._scheduled:
            scheduled.apply(optimizer, state)
        if self._remainder:
            self._remainder.average()
        if self._clip_norm is not None:
            if self._scaler is not None:
                self._scaler.unscale_(optimizer)
            clip_gradients([each for group in optimizer.param_groups for each in group["params"]], self._clip_norm)
        if self._scaler is None:
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        else:
            self._scaler.step(optimizer)
            self._scaler.update()
        optimizer.zero_grad()
        for stray in self._strays:  # the optimizer does not know them, and their gradients would add up
            stray.grad = None
        if self._average is not None:
            self._average.update_parameters(plain_module(self._net))

    def predict_step(self, batch: Any, step: int) -> Any:
        """Return the module's output for one batch (for a tuple or a list, for its first element)."""
        if self._is_spread:
            self._keep("predict_step", batch, step)
        inputs = cast("Any", batch[0]) if isinstance(batch, (tuple, list)) else batch
        with self._autocast():
            return self._net(inputs)

    def examine(self, batch: Any) -> tuple[Tensor, Any]:
        """Return the loss of one batch in evaluation, and what the metrics are updated with."""
        if self._is_spread:
            self._keep("examine", batch)
        with self._autocast():
            loss = self.loss(batch)
        return loss if isinstance(loss, tuple) else (loss, None)

    def idle_step(self, step: int) -> None:
        """Take part in a pass of an evaluation without a batch, where the module is spread over processes.

        All of them compute each layer together, so this one goes through the last batch that it had, or one of
        another's; nothing of it is counted. Override it with :meth:`valid_step`, if that calls the module otherwise.
        """
        if not self._is_spread:
            return
        if self._kept is None:
            method, batch, *more = first_known(None)
            self._kept = partial(getattr(self, method), move(batch, torch.device(self.device)), *more)
        vars(self)["log"] = _log_nothing
        try:
            self._kept()
        finally:
            del vars(self)["log"]

    def _keep(self, method: str, batch: Any, *more: Any) -> None:
        """Remember a batch for passes without one; in the first pass of all, give it to those that have none."""
        if self._kept is None and self.is_distributed:
            first_known((method, batch, *more))
        self._kept = partial(getattr(self, method), batch, *more)

    # -- whole passes -------------------------------------------------------------------------------------------------

    def row_values(self) -> Mapping[str, Any]:
        """Return the learning rate of the last update."""
        return {} if self.optimizer is None else {"lr": float(self.optimizer.param_groups[0]["lr"])}

    def note_validation(self, values: dict[str, float]) -> None:
        """Step what is scheduled on a metric."""
        super().note_validation(values)
        for scheduled in self._scheduled:
            scheduled.observe(values)

    def needs_validation(self) -> bool:
        """Say whether training goes by values of validations."""
        return super().needs_validation() or any(scheduled.every == "metric" for scheduled in self._scheduled)

    # -- state --------------------------------------------------------------------------------------------------------

    def stateful_parts(self) -> dict[str, Any]:
        """Return the parts that ``setup`` has made beside those of this class, by name."""
        return {name: value for name, value in super().stateful_parts().items() if name not in _OWN}

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and everything that training them goes on with."""
        return {
            "module": take_weights(self._trained_net),
            "average": None if self._average is None else take_weights(self._average),
            "optimizer": take_part(self.optimizer),
            "scaler": take_part(self._scaler),
            "schedules": [take_part(scheduled) for scheduled in self._scheduled],
            "metrics": {name: take_part(metric) for name, metric in self.metrics.items()},
            "parts": super().state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        """Continue from what :meth:`state_dict` returned; with ``fast_init`` only the weights.

        Raises:
            CheckpointMismatchError: it is of another model. Nothing was changed.
        """
        if fast_init:
            self.load_weights(state_dict)
            if self._average is not None and state_dict["average"] is not None:
                give_weights("average", self._average, state_dict["average"])
            return
        self._check(state_dict)
        super().load_state_dict(state_dict["parts"])
        give_weights("module", self._trained_net, state_dict["module"])
        if self._average is not None:
            give_weights("average", self._average, state_dict["average"])
        for what, part, state in self._parts_and_states(state_dict):
            give_part(what, part, state)

    def _parts_and_states(self, state_dict: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        """Return what each of this class's own parts is called, the part, and its state."""
        found = [(name, getattr(self, attribute), state_dict[name]) for name, attribute in _ONE.items()]
        found += [("a schedule", *pair) for pair in zip(self._scheduled, state_dict["schedules"], strict=True)]
        metrics = state_dict["metrics"]
        return [
            *found,
            *((f"metric {name!r}", each, metrics[name]) for name, each in self.metrics.items() if name in metrics),
        ]

    def _check(self, state_dict: dict[str, Any]) -> None:
        """Refuse the state of another model, before anything is changed."""
        here, there = len(self._scheduled), len(state_dict["schedules"])
        if here != there:
            raise CheckpointMismatchError(
                f"the model has {here} schedules and the checkpoint {there}; expected the same."
            )
        if (self._average is None) != (state_dict["average"] is None):
            with_one = "checkpoint" if self._average is None else "model"
            raise CheckpointMismatchError(
                f"only the {with_one} has averaged weights; expected both or neither. Set ema_decay as it was."
            )
        check_weights("module", self._trained_net, state_dict["module"])
        for what, part, state in self._parts_and_states(state_dict):
            check_part(what, part, state)
            if isinstance(part, Scheduled):
                part.check_state_dict(state["state"])

    def load_weights(self, state_dict: dict[str, Any]) -> None:
        """Take only the weights, from which an average then begins.

        Raises:
            CheckpointMismatchError: they are not those of this module; names what differs. Nothing was changed.
        """
        check_weights("module", self._trained_net, state_dict["module"], dtypes=False)
        super().load_weights(state_dict["parts"])
        give_weights("module", self._trained_net, state_dict["module"])
        if self._average is not None:
            give_weights("average", self._average.module, state_dict["module"])

    def portable_state(self) -> dict[str, Any]:
        """Return what a model on another backend can go on from: the weights, their average, the moments."""
        return take_portable(self._portable_parts(), self.optimizer, self._average)

    def load_portable(self, state: dict[str, Any] | None, backend: str, num_updates: int) -> None:
        """Continue from what JAX's ``portable_state`` returned; ``self.weight_map`` says what is what.

        Raises:
            CheckpointMismatchError: there is no map, or the weights do not fit it. Nothing was changed.
        """
        if state is None or self.weight_map is None or backend != "jax":
            super().load_portable(state, backend, num_updates)
            return
        optimizer, average = self.optimizer, self._average
        parts = self._portable_parts()
        give_portable(
            state, self.weight_map, parts=parts, optimizer=optimizer, average=average, num_updates=num_updates
        )

    def _portable_parts(self) -> Parts:
        """Return the module, whose names begin with nothing, and what else is trained, each by its attribute."""
        others: dict[str, nn.Module | nn.Parameter] = {**super().modules()}
        for name, value in self.stateful_parts().items():
            others |= walk(name, value, nn.Parameter)
        return {"": plain_module(self._trained_net), **others}

    def trained_state_dict(self) -> dict[str, Any]:
        """Return the weights that evaluation uses: the averaged ones where there are any."""
        state: dict[str, Any] = take_weights(self._trained_net if self._average is None else self._average.module)
        return state


_ONE = {"optimizer": "optimizer", "scaler": "_scaler"}


def _log_nothing(*_: Any, **__: Any) -> None:
    """Stands for ``log`` where nothing is to be counted."""


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise InvalidTypeError(
            f"loss(batch) returned {what}; expected a scalar tensor, or (scalar, outputs). Use .mean()."
        )
