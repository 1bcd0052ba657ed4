"""Which checkpoints of a run stay: the last, the best, one in so many iterations, and those that are pinned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import attrs

from parhelion.errors import InvalidValueError

from ._pins import is_pinned
from ._retention import CheckpointInfo, list_checkpoints, prune

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ._places import RemotePath, Where

__all__ = ["Retention", "retain"]


def _at_least_one(_: object, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None and value < 1:
        raise InvalidValueError(f"{attribute.name} is {value!r}; expected an integer >= 1, or None for no such rule.")


def _min_or_max(_: object, __: object, value: str) -> None:
    if value not in ("min", "max"):
        raise InvalidValueError(f"mode is {value!r}; expected 'min' or 'max'. A loss is best at its least.")


@attrs.frozen
class Retention:
    """Rules for which checkpoints stay; one stays if any rule keeps it. Without a rule all stay.

    The newest always stays, and so does every pinned one.

    Attributes:
        last: keep the newest so many.
        best: keep those so many whose metric is best. NaN is worse than any number, one without the metric is never
            among the best, and of equal ones the earlier is better: another has to improve on it.
        mode: whether the "min" or the "max" of the metric is best.
        metric: its name in ``meta["metrics"]``.
        every_iterations: keep the first checkpoint at or after every multiple of so many iterations.
    """

    last: int | None = attrs.field(default=None, validator=_at_least_one)
    best: int | None = attrs.field(default=None, validator=_at_least_one)
    mode: Literal["min", "max"] = attrs.field(default="min", validator=_min_or_max)
    metric: str | None = None
    every_iterations: int | None = attrs.field(default=None, validator=_at_least_one)

    def __attrs_post_init__(self) -> None:
        if self.best is not None and self.metric is None:
            raise InvalidValueError(
                f"best is {self.best} and metric is None; expected the name of a metric to judge by. Pass metric='...'."
            )

    def choose(self, infos: Iterable[CheckpointInfo], pinned: Iterable[Where] = ()) -> list[CheckpointInfo]:
        """Return which of these checkpoints to delete, oldest first.

        Args:
            infos: checkpoints of one run, in any order.
            pinned: paths of some that stay whatever the rules say.
        """
        if self.last is self.best is self.every_iterations is None:
            return []
        ordered = sorted(infos, key=lambda info: (info.iteration, info.epoch, str(info.path)))
        stay = {str(path) for path in pinned}
        for kept in (ordered[-1:], self._last(ordered), self._best(ordered), self._spaced(ordered)):
            stay.update(str(info.path) for info in kept)
        return [info for info in ordered if str(info.path) not in stay]

    def _last(self, ordered: Sequence[CheckpointInfo]) -> Sequence[CheckpointInfo]:
        return () if self.last is None else ordered[-self.last :]

    def _best(self, ordered: Sequence[CheckpointInfo]) -> Sequence[CheckpointInfo]:
        if self.best is None:
            return ()
        judged = [(value, info) for info in ordered if (value := self._value(info)) is not None]
        sign = 1.0 if self.mode == "min" else -1.0
        # The order among equals is kept, so the earlier comes first.
        judged.sort(key=lambda pair: (math.isnan(pair[0]), 0.0 if math.isnan(pair[0]) else sign * pair[0]))
        return [info for _, info in judged[: self.best]]

    def _value(self, info: CheckpointInfo) -> float | None:
        metrics = info.meta.get("metrics")
        if not isinstance(metrics, Mapping):
            return None
        value = cast("Mapping[str, object]", metrics).get(str(self.metric))
        return float(value) if isinstance(value, (int, float)) else None

    def _spaced(self, ordered: Sequence[CheckpointInfo]) -> Iterable[CheckpointInfo]:
        if self.every_iterations is None:
            return ()
        first: dict[int, CheckpointInfo] = {}
        for info in ordered:
            first.setdefault(info.iteration // self.every_iterations, info)
        first.pop(0, None)
        return first.values()


def retain(root: Where, retention: Retention, protect: Iterable[Where] = ()) -> list[Path | RemotePath]:
    """Delete what the rules do not keep, oldest first, and return what is gone; call it once the new one is committed.

    Args:
        root: the checkpoints' folder.
        retention: the rules.
        protect: paths of checkpoints to keep besides; pinned ones are kept anyhow.

    Raises:
        CheckpointError: one cannot be deleted; the others are.
    """
    infos = list_checkpoints(root)
    chosen = retention.choose(infos)
    going = {str(info.path) for info in chosen if not is_pinned(info.path)}
    if not going:
        return []
    staying = [info.path for info in infos if str(info.path) not in going]
    return prune(root, 1, [*staying, *protect])
