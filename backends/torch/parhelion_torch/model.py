"""Model for torch, and the short way to write one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from parhelion.errors import CheckpointMismatchError, InvalidTypeError, InvalidValueError
from parhelion.training import Model as CoreModel
from parhelion.training import TrainingState

from .schedules import Scheduled, as_scheduled
from .stateful import is_torchmetric, load_part, part_state

__all__ = ["LossModel", "Model"]

Loss: TypeAlias = "Tensor | tuple[Tensor, Any]"

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Model(CoreModel):
    """The explicit way: you write ``train_step`` and own every line of it.

    Modules, optimizers, schedulers, scalers and metrics that ``setup`` assigns to ``self`` are put on the device that you
    put them on, and saved and restored by themselves.
    """

    def evaluating(self) -> AbstractContextManager[Any]:
        """Return the context that evaluation runs in: without gradients."""
        return torch.no_grad()

    def train(self) -> None:
        """Switch every module to training mode."""
        self._set_mode(training=True)

    def eval(self) -> None:
        """Switch every module to evaluation mode."""
        self._set_mode(training=False)

    def take_state(self, part: Any) -> Any:
        """Return the whole state of a module, an optimizer, a metric or the like."""
        return part_state(part)

    def give_state(self, part: Any, state: Any) -> None:
        """Give it back.

        Raises:
            CheckpointMismatchError: it is of another part.
        """
        if isinstance(part, nn.Module) and not is_torchmetric(part):
            _load_module(part, state, type(part).__name__)
        else:
            load_part(type(part).__name__, part, state)

    def describe(self) -> Mapping[str, str]:
        """Return the number of parameters."""
        modules = [value for value in vars(self).values() if isinstance(value, nn.Module)]
        parameters = {id(p): p.numel() for module in modules for p in module.parameters()}
        return {"parameters": f"{sum(parameters.values()):,}"}

    def _set_mode(self, *, training: bool) -> None:
        for value in vars(self).values():
            if isinstance(value, nn.Module):
                value.train(training)


class LossModel(Model):
    """The short way: you give ``setup`` and ``loss``; forward, backward, accumulation, precision, clipping, update,
    averaging and evaluation are done for you.

    ``setup`` assigns ``self.module`` and ``self.optimizer``, and may assign ``self.schedules`` and ``self.metrics``. The
    module is moved to the device afterwards. ``loss(batch)`` returns the batch's mean loss, or ``(loss, outputs)``: in
    evaluation each metric is updated with ``outputs`` (a tuple of arguments, or a mapping from a metric's name to its
    tuple).

    Args:
        save_name: names the folder of this model's checkpoints.
        precision: "float32"; or "bfloat16" or "float16" for automatic mixed precision, with a gradient scaler for
            float16.
        clip_norm: the largest allowed norm of the whole gradient.
        ema_decay: decay in (0, 1) of an exponential moving average of the weights, which evaluation then uses.
        monitor: the validation value that says whether a validation is an improvement ("valid_loss").
        mode: whether a "min" or a "max" of it is better.

    Attributes:
        module: the network.
        optimizer: its optimizer.
        schedules: a schedule from ``parhelion.schedules``, a scheduler of torch, or a list of these; see ``per_update``,
            ``per_epoch`` and ``on_metric`` for when each is stepped. Plain ones are stepped per update, ReduceLROnPlateau
            after each validation.
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
        super().__init__(save_name)
        if precision not in _DTYPES:
            raise InvalidValueError(f"precision is {precision!r}; expected one of {', '.join(map(repr, _DTYPES))}.")
        if clip_norm is not None and not clip_norm > 0:
            raise InvalidValueError(f"clip_norm is {clip_norm!r}; expected a number > 0, or None for no clipping.")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise InvalidValueError(f"ema_decay is {ema_decay!r}; expected a number between 0 and 1, such as 0.999.")
        if mode not in ("min", "max"):
            raise InvalidValueError(f"mode is {mode!r}; expected 'min' or 'max'.")
        self.monitor = monitor
        self.module: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.schedules: Any = None
        self.metrics: dict[str, Any] = {}
        self._mode = mode
        self._dtype = _DTYPES[precision]
        self._clip_norm = clip_norm
        self._ema_decay = ema_decay
        self._average: AveragedModel | None = None
        self._trained: nn.Module | None = None
        self._scaler: torch.amp.GradScaler | None = None  # pyright: ignore[reportPrivateImportUsage]
        self._scheduled: list[Scheduled] = []
        self._best: float | None = None
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    # -- for the user -------------------------------------------------------------------------------------------------

    def loss(self, batch: Any) -> Loss:
        """Return the mean loss of one batch, or ``(loss, outputs)``.

        Raises:
            InvalidTypeError: the model does not define it.
        """
        raise InvalidTypeError(f"{type(self).__name__} defines no loss(batch); a LossModel needs one.")

    # -- set-up -------------------------------------------------------------------------------------------------------

    def finish_setup(self, fast_init: bool = False) -> None:
        """Check what ``setup`` made, move it to the device, and make the average and the scaler."""
        module, device = self.module, torch.device(self.device)
        if not isinstance(module, nn.Module):
            raise InvalidTypeError(f"self.module is {module!r} after setup(); expected a torch.nn.Module.")
        if not fast_init and not isinstance(self.optimizer, torch.optim.Optimizer):
            raise InvalidTypeError(f"self.optimizer is {self.optimizer!r} after setup(); expected a torch optimizer.")
        module.to(device)
        for metric in self.metrics.values():
            if isinstance(metric, nn.Module):  # torchmetrics
                metric.to(device)
        if self._ema_decay is not None:
            self._average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(self._ema_decay))
        if self._dtype is not None:
            kind, dtype = device.type, self._dtype
            self._autocast = lambda: torch.autocast(kind, dtype)
        if self._dtype is torch.float16:
            self._scaler = torch.amp.GradScaler(device.type)  # pyright: ignore[reportPrivateImportUsage]
        if self.optimizer is not None:
            self._scheduled = as_scheduled(self.schedules, self.optimizer, self.monitor)

    def train(self) -> None:
        """Switch to training mode, on the weights that are trained."""
        if self._trained is not None:
            self.module, self._trained = self._trained, None
        self._net.train()

    def eval(self) -> None:
        """Switch to evaluation mode, on the averaged weights where there are any."""
        if self._average is not None and self._trained is None:
            self._trained, self.module = self._net, self._average.module
        self._net.eval()

    @property
    def _net(self) -> nn.Module:
        return cast("nn.Module", self.module)

    # -- steps --------------------------------------------------------------------------------------------------------

    def train_step(self, batch: Any, state: TrainingState) -> Any:
        """Train on one batch; the optimizer steps when the accumulation group is complete."""
        with self._autocast():
            loss = self.loss(batch)
        if isinstance(loss, tuple):
            loss = loss[0]
        share = loss if state.loss_weight == 1.0 else loss * state.loss_weight
        if self._scaler is not None:
            share = self._scaler.scale(share)
        share.backward()  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownMemberType]
        if state.is_update:
            self._update(state)
        return loss.detach()

    def _update(self, state: TrainingState) -> None:
        """Step the optimizer on what the group has accumulated."""
        optimizer = cast("torch.optim.Optimizer", self.optimizer)
        for scheduled in self._scheduled:
            scheduled.apply(optimizer, state)
        if self._clip_norm is not None:
            if self._scaler is not None:
                self._scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self._net.parameters(), self._clip_norm)
        if self._scaler is None:
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        else:
            self._scaler.step(optimizer)
            self._scaler.update()
        optimizer.zero_grad()
        if self._average is not None:
            self._average.update_parameters(self._net)

    def valid_step(self, batch: Any, step: int) -> Any:
        """Return the loss of one validation batch and update the metrics."""
        return self._evaluate(batch)

    def test_step(self, batch: Any, step: int) -> Any:
        """Return the loss of one test batch and update the metrics."""
        return self._evaluate(batch)

    def predict_step(self, batch: Any, step: int) -> Any:
        """Return the module's output for one batch (for a tuple or a list, for its first element)."""
        inputs = cast("Any", batch[0]) if isinstance(batch, (tuple, list)) else batch
        with self._autocast():
            return self._net(inputs)

    def _evaluate(self, batch: Any) -> Tensor:
        with self._autocast():
            loss = self.loss(batch)
        if not isinstance(loss, tuple):
            if self.metrics:
                raise InvalidTypeError(
                    f"loss(batch) returned no outputs and there are metrics ({', '.join(self.metrics)}); expected "
                    "(loss, outputs), with outputs as the metrics' arguments."
                )
            return loss
        value, outputs = loss
        for name, metric in self.metrics.items():
            metric.update(*(outputs[name] if isinstance(outputs, Mapping) else outputs))
        return value

    # -- whole passes -------------------------------------------------------------------------------------------------

    def row_values(self) -> Mapping[str, Any]:
        """Return the learning rate of the last update."""
        return {} if self.optimizer is None else {"lr": float(self.optimizer.param_groups[0]["lr"])}

    def start_evaluation(self) -> None:
        """Forget the metrics of the pass before."""
        for metric in self.metrics.values():
            metric.reset()

    def finish_evaluation(self) -> Mapping[str, Any]:
        """Return the metrics of a whole pass; one with several values gives a value for each."""
        values: dict[str, Any] = {}
        for name, metric in self.metrics.items():
            value = metric.compute()
            if isinstance(value, Mapping):
                parts = cast("Mapping[str, Any]", value)
                values |= {f"{name}_{part}": each for part, each in parts.items()}
            else:
                values[name] = value
        return values

    def note_validation(self, values: dict[str, float]) -> None:
        """Step what is scheduled on a metric."""
        super().note_validation(values)
        for scheduled in self._scheduled:
            scheduled.observe(values)

    def have_metrics_improved(self) -> bool:
        """Say whether the monitored value is the best so far; without one, always yes.

        Raises:
            InvalidValueError: the validation gave no such value.
        """
        if self.monitor is None:
            return True
        if self.monitor not in self.validated:
            raise InvalidValueError(
                f"monitor is {self.monitor!r}; expected one of the validation's values: {', '.join(self.validated)}."
            )
        value = self.validated[self.monitor]
        if self._best is None or (value < self._best if self._mode == "min" else value > self._best):
            self._best = value
            return True
        return False

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and everything that training them goes on with."""
        return {
            "module": (self._trained or self._net).state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "schedules": [scheduled.state_dict() for scheduled in self._scheduled],
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "metrics": {name: part_state(metric) for name, metric in self.metrics.items()},
            "best": self._best,
        }

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        """Continue from what :meth:`state_dict` returned; with ``fast_init`` only the weights.

        Raises:
            CheckpointMismatchError: the weights, the optimizer or the schedules are not those of this model.
        """
        self.load_weights(state_dict)
        if self._average is not None and state_dict["average"] is not None:
            _load_module(self._average, state_dict["average"], "average")
        if fast_init:
            return
        load_part("optimizer", self.optimizer, state_dict["optimizer"])
        load_part("scaler", self._scaler, state_dict["scaler"])
        _same_number("schedules", self._scheduled, state_dict["schedules"])
        for scheduled, state in zip(self._scheduled, state_dict["schedules"], strict=True):
            scheduled.load_state_dict(state)
        for name, metric in self.metrics.items():
            if name in state_dict["metrics"]:
                load_part(f"metric {name!r}", metric, state_dict["metrics"][name])
        self._best = state_dict["best"]

    def load_weights(self, state_dict: dict[str, Any]) -> None:
        """Take only the weights.

        Raises:
            CheckpointMismatchError: they are not those of this module; names what differs.
        """
        _load_module(self._trained or self._net, state_dict["module"], "module")

    def trained_state_dict(self) -> dict[str, Any]:
        """Return the weights that evaluation uses: the averaged ones where there are any."""
        return (self._average.module if self._average is not None else self._net).state_dict()


def _same_number(what: str, here: Iterable[Any], saved: Iterable[Any]) -> None:
    mine, theirs = len(list(here)), len(list(saved))
    if mine != theirs:
        raise CheckpointMismatchError(f"the model has {mine} {what} and the checkpoint {theirs}; expected the same.")


def _load_module(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load weights after comparing names and shapes, so that a refusal lists all that differs and changes nothing."""
    here = {name: tuple(value.shape) for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    there = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}  # pyright: ignore[reportUnnecessaryIsInstance]
    differences = [f"{name} is missing in the checkpoint" for name in here if name not in there]
    differences += [f"{name} is only in the checkpoint" for name in there if name not in here]
    differences += [
        f"{name} is {here[name]} here and {there[name]} there"
        for name in here
        if name in there and here[name] != there[name]
    ]
    if differences:
        shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
        raise CheckpointMismatchError(
            f"the checkpoint's {what} is of another model: {shown}. Build the model as it was when it was saved."
        )
    module.load_state_dict(cast("Mapping[str, Any]", state))
