"""A trained model's weights out of a checkpoint, for programs that know nothing of checkpoints."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from parhelion.errors import CheckpointError, CheckpointMismatchError, InvalidValueError

from ._format import read_manifest
from ._paths import format_path
from ._pieces import read_array
from ._places import as_place
from ._safetensors import has_dtype, lay_out
from ._skeletons import array_in, leaves_of, node_at

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from ._arrays import HostArray
    from ._places import Where

__all__ = ["export_weights", "open_whole", "read_weights"]


def read_weights(
    path: Where, *, which: Literal["weights", "average"] = "weights", within: Sequence[object] | None = None
) -> dict[str, HostArray]:
    """Return a model's weights, verified, by the names that its framework gives them.

    One array at two names (tied weights) is one object.

    Args:
        path: a checkpoint.
        which: the "weights", or their "average" of a run that keeps one; of a ``LossModel``.
        within: the keys that lead to the weights in the tree, such as ``("model", "net")`` for the attribute ``net``
            of a ``Model``. Names are then joined with dots from there on.

    Raises:
        CheckpointMismatchError: there are no weights there; says where there are arrays.
        DamagedCheckpointError: they are not what was written.
        CheckpointError: there is no checkpoint at ``path``, or it cannot be read.
    """
    folder = as_place(path)
    manifest = read_manifest(folder)
    keys = ("portable", which) if within is None else tuple(within)
    found = node_at(manifest.tree, keys)
    named = {} if found is None else {_join(keys): array_in(leaf) for keys, leaf in leaves_of(found)}
    names = {name: array for name, array in named.items() if array is not None}
    if not names:
        places = sorted({format_path(keys[:2]) for keys, leaf in leaves_of(manifest.tree) if array_in(leaf)})
        raise CheckpointMismatchError(
            f"checkpoint {folder} has no arrays at {format_path(keys)}; expected the weights of a model there. Pass "
            f"within=(...), the keys that lead to them; there are arrays at {', '.join(places) or 'no place'}."
        )
    arrays = {array: read_array(folder, manifest, array) for array in dict.fromkeys(names.values())}
    return {name: arrays[array] for name, array in names.items()}


def export_weights(
    path: Where,
    target: Path | str,
    *,
    which: Literal["weights", "average"] = "weights",
    within: Sequence[object] | None = None,
) -> list[str]:
    """Write a model's weights to one safetensors file, which any program of that format reads; return their names.

    The file is there whole or not at all. Tied weights are written once for each name. For a torch state dict see
    ``parhelion_torch.export_state_dict``.

    Args:
        path: a checkpoint.
        target: the file; one that is there is replaced.
        which: as for ``read_weights``.
        within: likewise.

    Raises:
        CheckpointMismatchError: there are no weights there, or one has a dtype that the format does not name.
        DamagedCheckpointError: they are not what was written.
        CheckpointError: a checkpoint cannot be read, or the file not be written.
    """
    arrays = read_weights(path, which=which, within=within)
    for name, array in arrays.items():
        if not has_dtype(array.dtype):
            raise CheckpointMismatchError(
                f"{name} has the dtype {array.dtype!r}; expected one that safetensors names. Save it in the model as "
                "another type, or export a part of the model with within=(...)."
            )
    file = Path(target)
    if file.is_dir():
        raise InvalidValueError(f"target is {str(file)!r}, a folder; expected a file. Add a name to it.")
    try:
        with open_whole(file) as stream:
            _write_all(stream, arrays)
    except OSError as error:
        raise CheckpointError(
            f"weights could not be written to {file} ({error.strerror or error}); expected a writable folder with "
            "room for them. What was there before is untouched."
        ) from error
    return list(arrays)


@contextlib.contextmanager
def open_whole(file: Path) -> Generator[BinaryIO]:
    """Open a file for writing: it is there, durable, once the context is left without an error, else as before."""
    draft = file.with_name(f".{file.name}.{os.urandom(4).hex()}")
    try:
        with draft.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _write_all(stream: BinaryIO, arrays: Mapping[str, HostArray]) -> None:
    header, starts = lay_out(arrays)
    stream.write(header)
    stream.writelines(arrays[name].data.data for name in starts)


def _join(keys: Sequence[object]) -> str:
    return ".".join(map(str, keys))
