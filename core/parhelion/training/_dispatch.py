"""Who is told what: from an event to the plugins' hook of that moment, then the model's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from parhelion.plugins import Plugin

from ._events import (
    BatchEnded,
    BatchStarted,
    EpochEnded,
    EpochStarted,
    Event,
    TestBatchEnded,
    TestBatchStarted,
    TestEnded,
    TestStarted,
    TrainingEnded,
    TrainingStarted,
    ValidationBatchEnded,
    ValidationBatchStarted,
    ValidationEnded,
    ValidationStarted,
)
from ._model import Model

__all__ = ["HookTable", "hook_table", "overridden", "tell"]

HookTable: TypeAlias = dict[type[Event], list[Callable[..., None]]]

# An event's fields are its hooks' arguments.
_MOMENTS: dict[type[Event], tuple[Callable[..., None], Callable[..., None]]] = {
    TrainingStarted: (Plugin.on_training_start, Model.on_training_start),
    TrainingEnded: (Plugin.on_training_end, Model.on_training_end),
    EpochStarted: (Plugin.on_training_epoch_start, Model.on_training_epoch_start),
    EpochEnded: (Plugin.on_training_epoch_end, Model.on_training_epoch_end),
    BatchStarted: (Plugin.on_training_batch_start, Model.on_training_batch_start),
    BatchEnded: (Plugin.on_training_batch_end, Model.on_training_batch_end),
    ValidationStarted: (Plugin.on_validation_start, Model.on_validation_start),
    ValidationEnded: (Plugin.on_validation_end, Model.on_validation_end),
    ValidationBatchStarted: (Plugin.on_validation_batch_start, Model.on_validation_batch_start),
    ValidationBatchEnded: (Plugin.on_validation_batch_end, Model.on_validation_batch_end),
    TestStarted: (Plugin.on_testing_start, Model.on_testing_start),
    TestEnded: (Plugin.on_testing_end, Model.on_testing_end),
    TestBatchStarted: (Plugin.on_testing_batch_start, Model.on_testing_batch_start),
    TestBatchEnded: (Plugin.on_testing_batch_end, Model.on_testing_batch_end),
}


def overridden(owner: Any, default: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return ``owner``'s own version of a method, or None if it is still the default one."""
    own = getattr(owner, default.__name__)
    return None if getattr(own, "__func__", own) is default else own


def hook_table(plugins: Iterable[Plugin], model: Model) -> HookTable:
    """Return what to call at each event: the plugins' hooks, then the model's; nothing that nobody overrides."""
    plugins = list(plugins)
    table: HookTable = {}
    for event, (of_plugin, of_model) in _MOMENTS.items():
        hooks = [overridden(plugin, of_plugin) for plugin in plugins] + [overridden(model, of_model)]
        if own := [hook for hook in hooks if hook is not None]:
            table[event] = own
    return table


def tell(table: HookTable, event: Event | None) -> None:
    """Call the hooks of an event, if there is one."""
    if event is not None:
        for hook in table.get(type(event), ()):
            hook(*event)
