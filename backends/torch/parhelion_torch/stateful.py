"""State of torch's own objects and torchmetrics', taken and given back in full."""

from __future__ import annotations

from typing import Any

from parhelion.errors import CheckpointMismatchError

__all__ = ["is_torchmetric", "load_part", "part_state"]


def is_torchmetric(part: Any) -> bool:
    """Return whether a part is a metric of torchmetrics, told by what it has, since the library may not be installed."""
    return hasattr(part, "persistent") and hasattr(part, "_update_count")


def part_state(part: Any) -> Any:
    """Return the state of an optimizer, a metric or the like.

    torchmetrics leaves a metric's accumulators out of its state unless asked, and the number of updates always.
    """
    if not is_torchmetric(part):
        return part.state_dict()
    part.persistent(mode=True)
    return {"state": part.state_dict(), "updates": part._update_count}  # noqa: SLF001 - it has no other door


def load_part(what: str, part: Any, state: Any) -> None:
    """Give a part the state that :func:`part_state` took.

    Raises:
        CheckpointMismatchError: the state is not of such a part.
    """
    if (part is None) != (state is None):
        here, there = ("none", "one") if part is None else ("one", "none")
        raise CheckpointMismatchError(
            f"the model has {here} and the checkpoint {there}: {what}. Build the model as it was when it was saved."
        )
    if part is None:
        return
    try:
        if is_torchmetric(part):
            part.persistent(mode=True)
            part.load_state_dict(state["state"])
            part._update_count = state["updates"]  # noqa: SLF001 - it has no other door
        else:
            part.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointMismatchError(
            f"the checkpoint's {what} does not fit {type(part).__name__}: {error}. "
            "Build the model as it was when it was saved."
        ) from error
