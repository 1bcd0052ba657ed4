"""Weights out of a checkpoint, as a file that plain PyTorch loads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from parhelion.checkpoint import RemotePath, open_whole, read_weights
from parhelion.errors import CheckpointError

from .arrays import Arrays

__all__ = ["export_state_dict"]


def export_state_dict(
    path: Path | RemotePath | str,
    target: Path | str,
    *,
    which: Literal["weights", "average"] = "weights",
    within: Sequence[object] | None = None,
) -> list[str]:
    """Write a model's weights as a state dict that ``torch.load(target, weights_only=True)`` reads; return their names.

    The file is there whole or not at all. Tied weights stay tied. It takes a checkpoint of any backend; the names are
    those of the backend that wrote it.

    Args:
        path: a checkpoint.
        target: the file; one that is there is replaced.
        which: the "weights" of a ``LossModel``, or their "average" of a run that keeps one.
        within: the keys that lead to the weights in the tree of any other model, such as ``("model", "net")``.

    Raises:
        CheckpointMismatchError: there are no weights there.
        DamagedCheckpointError: they are not what was written.
        CheckpointError: a checkpoint cannot be read, or the file not be written.
    """
    arrays, adapter = read_weights(path, which=which, within=within), Arrays()
    # One array at two names becomes one tensor.
    tensors = {id(array): adapter.decode(array) for array in {id(each): each for each in arrays.values()}.values()}
    state: OrderedDict[str, Any] = OrderedDict((name, tensors[id(array)]) for name, array in arrays.items())
    try:
        with open_whole(Path(target)) as stream:
            torch.save(state, stream)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"weights could not be written to {target} ({error}); expected a writable folder with room for them. What "
            "was there before is untouched."
        ) from error
    return list(state)
