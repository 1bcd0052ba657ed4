"""What ranks that each compute on their own batches have come to, made one.

Where ranks compute as one, what one has is everybody's already. It is so on one rank, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from parhelion.errors import InvalidTypeError, InvalidValueError

from ._metrics import AnyMetric, Metric, merge_states
from ._protocols import BackendParts, World

__all__ = ["check_counted", "check_mergeable", "get_merging_world", "merge_metric", "merges_itself"]

_METHODS: Final = ("update", "compute", "merge", "reset", "state_dict", "load_state_dict")


def get_merging_world(parts: BackendParts) -> World | None:
    """Return the processes over which values are merged; None where there is nothing to merge."""
    return None if parts.computes_as_one or parts.world.size == 1 else parts.world


def check_mergeable(what: str, metric: Any, world: World | None) -> None:
    """Do nothing if ``metric`` can say what all ranks have counted.

    Args:
        what: what the metric is called, for the message.
        metric: any.
        world: the processes that each count their own records; None where there is nothing to merge.

    Raises:
        InvalidTypeError: it cannot.
    """
    if world is None or isinstance(metric, Metric) or merges_itself(metric):
        return
    missing = [name for name in _METHODS if not callable(getattr(metric, name, None))]
    raise InvalidTypeError(
        f"{what} is a {type(metric).__name__} without {', '.join(missing)}, and {world.size} ranks each count their "
        "own records; expected the methods of parhelion.metrics.Metric, by which they are put together. Add them, or "
        "evaluate on one rank."
    )


def merges_itself(metric: Any) -> bool:
    """Return whether a metric asks all ranks in its own ``compute``, as torchmetrics' and collections of these do."""
    if _has(metric, "sync", "unsync", "compute"):
        return True
    if not _has(metric, "values", "compute"):
        return False
    values = cast("Callable[[], Iterable[Any]]", metric.values)
    return all(_has(each, "sync", "unsync", "compute") for each in values())


def check_counted(what: str, metric: Any, world: World | None) -> None:
    """Do nothing if a metric that asks all ranks itself can do so now; all ranks must ask.

    torchmetrics' list states of a rank that was given nothing are sent as float32; where other ranks' are of another
    type, such as labels, gloo then ends the processes without an error that can be caught (torchmetrics 1.9).

    Raises:
        InvalidValueError: it is such a metric, and such a rank is there.
    """
    if world is None or not merges_itself(metric):
        return
    told = world.gather([_kept(each) for each in (metric.values() if hasattr(metric, "values") else [metric])])
    for kept in zip(*told, strict=True):
        if "nothing" in kept and "others" in kept:
            raise InvalidValueError(
                f"{what} is a {type(metric).__name__}, which keeps what it is given, and process "
                f"{kept.index('nothing')} was given nothing: the split has too few records for {world.size} ranks. "
                "Expected one for each. Use parhelion.metrics, a metric that keeps sums (thresholds=...), or fewer "
                "ranks."
            )


def _kept(metric: Any) -> str:
    """Return whether a metric's list states hold "nothing", "floats", or "others"; "sums" where it has no list."""
    lists: list[list[Any]] = [each for each in getattr(metric, "metric_state", {}).values() if isinstance(each, list)]
    if not lists:
        return "sums"
    kinds = {str(each.dtype) for items in lists for each in items}
    return "nothing" if not kinds else "floats" if kinds == {"torch.float32"} else "others"


def merge_metric(what: str, metric: AnyMetric, world: World | None) -> AnyMetric:
    """Return a metric that has counted what ``metric`` has on every rank, in rank order; all must ask.

    It is ``metric`` itself where there is nothing to merge, and where it asks the other ranks in its ``compute``.

    Raises:
        InvalidTypeError: it cannot be merged.
    """
    check_mergeable(what, metric, world)
    if world is None or merges_itself(metric):
        return metric
    return merge_states(metric, world.gather(metric.state_dict()))


def _has(thing: Any, *methods: str) -> bool:
    return all(callable(getattr(thing, name, None)) for name in methods)
