"""The plugins of one trainer, by id."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import attrs

from parhelion.errors import DuplicatePluginError, InvalidTypeError, InvalidValueError, PluginConflictError

from ._plugin import Plugin

__all__ = ["PluginTable"]


class PluginTable(MutableMapping[str, Plugin]):
    """A mapping from ids to plugins whose every way in goes through the same checks.

    Args:
        trainer: what each plugin's ``trainer`` becomes.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._plugins: dict[str, Plugin] = {}

    def __setitem__(self, plug_id: str, plugin: Plugin) -> None:
        """Attach a plugin; attaching the same object again changes nothing.

        Raises:
            InvalidTypeError: ``plugin`` is no Plugin.
            InvalidValueError: ``plug_id`` is not its id.
            DuplicatePluginError: (a KeyError) another plugin has the id.
            PluginConflictError: (a ValueError) another plugin claims one of its unique overrides.
        """
        if not isinstance(plugin, Plugin):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
            raise InvalidTypeError(f"plugin {plug_id!r} is {plugin!r}; expected a parhelion.Plugin.")
        if plug_id != plugin.plug_id:
            raise InvalidValueError(
                f"plugin id is {plug_id!r}; expected {plugin.plug_id!r}, the id of the plugin itself. "
                "Use register_plugin."
            )
        present = self._plugins.get(plug_id)
        if present is plugin:
            return
        if present is not None:
            raise DuplicatePluginError(
                f"plugin id {plug_id!r} is taken by {type(present).__name__}; ids are unique. "
                f"Give {type(plugin).__name__} another plug_id, or remove the first one."
            )
        claimed = attrs.asdict(plugin.unique_overrides)
        for other in self._plugins.values():
            shared = [name for name, on in attrs.asdict(other.unique_overrides).items() if on and claimed[name]]
            if shared:
                raise PluginConflictError(
                    f"plugin {plug_id!r} overrides {', '.join(shared)}, and so does {other.plug_id!r}; expected one at "
                    "most. Clear the flag in unique_overrides of one of them, or merge them into one plugin."
                )
        plugin.trainer = self._trainer
        self._plugins[plug_id] = plugin

    def __getitem__(self, plug_id: str) -> Plugin:
        return self._plugins[plug_id]

    def __delitem__(self, plug_id: str) -> None:
        del self._plugins[plug_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._plugins)

    def __len__(self) -> int:
        return len(self._plugins)

    def __repr__(self) -> str:
        return f"PluginTable({self._plugins})"
