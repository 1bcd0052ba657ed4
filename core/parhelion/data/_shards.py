"""Data in shards: which there are, in what order they come, how they are opened, and reading on from a byte of one."""

from __future__ import annotations

import bz2
import glob
import gzip
import importlib
import io
import lzma
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, Self, cast

from parhelion.errors import (
    CheckpointMismatchError,
    DataError,
    InvalidTypeError,
    InvalidValueError,
    MissingExtraError,
)
from parhelion.sampling import Permutation
from parhelion.seeds import derive

from ._lane import Lane, default_lanes
from ._stream import Stream

__all__ = ["Located", "ShardStream"]

_BRACES: Final = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_COMPRESSED: Final[Mapping[str, Callable[[str], Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_fspath: Callable[[Any], str] = os.fspath
_READ: Final = 1 << 17  # bytes in one read of a file


class Located(NamedTuple):
    """A record and where the next one begins.

    Attributes:
        record: the record.
        next_offset: a byte of the shard, after decompression.
    """

    record: Any
    next_offset: int


class ShardStream(Stream):
    """Records out of files that are each read from front to back.

    An epoch has each shard once: in the order given, or with ``shuffle=True`` in the params in an order keyed by (seed,
    epoch). Lane ``l`` of ``L`` reads those at places ``l``, ``l + L``, ... of that order.

    Args:
        urls: paths and URLs of shards, as one or several; ``{000..127}`` and ``{a,b}`` stand for several, and ``*``,
            ``?`` and ``[...]`` for those that exist, in sorted order. Local paths need nothing; whatever fsspec can
            open (``s3://``, ``gs://``, ``http://``, ``memory://``) needs fsspec. What ends with .gz, .bz2, .xz or .zst
            is decompressed.
        num_lanes: in how many parts they are read: a multiple of the number of ranks, at most the number of shards.
            Default: the largest power of two up to the number of shards and 16.
        storage_options: arguments of the file system that fsspec opens, such as credentials.

    Raises:
        InvalidTypeError: ``urls`` is neither text nor a collection of it, or ``num_lanes`` no integer.
        InvalidValueError: there is no shard, or ``num_lanes`` is out of range.
        MissingExtraError: a shard needs fsspec, which is not installed.
    """

    def __init__(
        self,
        urls: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        num_lanes: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._storage_options = dict(storage_options or {})
        self.shards = _expand(urls, self._storage_options)
        lanes: Any = default_lanes(len(self.shards)) if num_lanes is None else num_lanes
        if isinstance(lanes, bool) or not isinstance(lanes, int):
            raise InvalidTypeError(f"num_lanes is {lanes!r}; expected an integer >= 1. Leave it out for the default.")
        if not 1 <= lanes <= len(self.shards):
            raise InvalidValueError(
                f"num_lanes is {lanes}; expected an integer from 1 to {len(self.shards)}, the number of shards. Leave "
                "it out for the default, or write more shards."
            )
        self._num_lanes = lanes

    @property
    def num_lanes(self) -> int:
        """In how many parts the shards are read."""
        return self._num_lanes

    @property
    def name(self) -> str:
        """The kind, how many shards there are, and in how many lanes they are read."""
        return f"{type(self).__name__}({len(self.shards)} shards, {self._num_lanes} lanes)"

    def open(self, lane: Lane) -> _ShardReader:
        """Return the records of one lane."""
        places = range(lane.number, len(self.shards), self._num_lanes)
        order = Permutation(len(self.shards), derive(lane.seed, "shards", lane.epoch))
        mine = [self.shards[order.index(place) if lane.shuffle else place] for place in places]
        return _ShardReader(self, mine)

    @abstractmethod
    def read(self, file: BinaryIO, offset: int, url: str) -> Generator[Located, None, None]:
        """Yield the records of an open shard that begin at ``offset`` or later.

        Args:
            file: stands at the offset.
            offset: a byte at which a record begins.
            url: for messages.

        Raises:
            DataError: the shard is not what it should be.
        """

    def open_shard(self, url: str, offset: int) -> BinaryIO:
        """Return an open shard that stands at ``offset``; what is compressed is read up to there."""
        try:
            file = _open(url, self._storage_options)
            file.seek(offset)
        except OSError as error:
            raise DataError(
                f"shard {url} cannot be read at byte {offset} ({type(error).__name__}: {error}); expected a file that "
                "can be opened and sought in. Check the path and the rights."
            ) from error
        return file


class _ShardReader:
    """The records of some shards, one shard after another.

    Its state is the shard and the byte where the next record begins.
    """

    def __init__(self, stream: ShardStream, shards: list[str]) -> None:
        self._file: BinaryIO | None = None
        self._records: Generator[Located, None, None] | None = None
        self._stream, self._shards = stream, shards
        self._shard = self._offset = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while self._shard < len(self._shards):
            url = self._shards[self._shard]
            if self._records is None:
                self._file = self._stream.open_shard(url, self._offset)
                self._records = self._stream.read(self._file, self._offset, url)
            try:
                located = next(self._records, None)
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise DataError(
                    f"shard {url} cannot be read on from byte {self._offset} ({type(error).__name__}: {error}); "
                    "expected the whole file. Write it again."
                ) from error
            if located is not None:
                self._offset = located.next_offset
                return located.record
            self._close()
            self._shard, self._offset = self._shard + 1, 0
        raise StopIteration

    def _close(self) -> None:
        if self._records is not None:
            self._records.close()
        if self._file is not None:
            self._file.close()
        self._records = self._file = None

    def __del__(self) -> None:
        self._close()  # one that is left early, as at the end of a run, has a file open

    def _name(self, shard: int) -> str | None:
        return self._shards[shard].rpartition("/")[2] if shard < len(self._shards) else None

    def state_dict(self) -> dict[str, Any]:
        """Return the shard, by place and name, and the byte where the next record begins."""
        return {"shard": self._shard, "name": self._name(self._shard), "offset": self._offset}

    def load_state_dict(self, state: Any) -> None:
        """Go on there.

        Raises:
            CheckpointMismatchError: another shard is at that place now.
        """
        shard, name = state["shard"], state["name"]
        if self._name(shard) != name:
            raise CheckpointMismatchError(
                f"shard {shard} of a lane is {self._name(shard)} and was {name} when the checkpoint was written; "
                "expected the same shards in the same order. Put them back, or begin the epoch again with "
                "allow_changes=('stream',) and a stream of another description."
            )
        self._close()
        self._shard, self._offset = shard, state["offset"]


def _expand(urls: Any, storage_options: Mapping[str, Any]) -> list[str]:
    given: list[Any] = [urls] if isinstance(urls, (str, os.PathLike)) else _listed(urls)
    wrong = [url for url in given if not isinstance(url, (str, os.PathLike))]
    if wrong:
        raise InvalidTypeError(f"a shard is {wrong[0]!r}; expected a path or URL. Pass text, or a pathlib.Path.")
    named = [each for url in map(_fspath, given) for each in _expand_braces(url)]
    shards = [found for each in named for found in _find(each, storage_options)]
    if not shards:
        raise InvalidValueError(f"urls is {urls!r}, which names no shard; expected at least one. Check the pattern.")
    return shards


def _listed(urls: Any) -> list[Any]:
    if not isinstance(urls, Iterable):
        raise InvalidTypeError(f"urls is {urls!r}; expected a path, a URL, or a list of them. Pass a pattern as text.")
    return [*urls]


def _expand_braces(url: str) -> list[str]:
    match = _BRACES.search(url)
    if match is None:
        return [url]
    first, last, words = match.groups()
    width = 0 if words is not None else len(first)
    parts = words.split(",") if words is not None else [f"{k:0{width}d}" for k in range(int(first), int(last) + 1)]
    return [each for part in parts for each in _expand_braces(url[: match.start()] + part + url[match.end() :])]


def _is_local(url: str) -> bool:
    return "://" not in url and "::" not in url


def _find(url: str, storage_options: Mapping[str, Any]) -> list[str]:
    if _is_local(url):
        return sorted(glob.glob(url)) if glob.has_magic(url) and not Path(url).exists() else [url]  # noqa: PTH207 - a pattern may be absolute
    # A question mark begins the query of an http URL, and is no pattern there.
    if not any(mark in url for mark in "*[") or url.startswith("http"):
        return [url]
    file_system, path = _import_fsspec(url).core.url_to_fs(url, **storage_options)
    return sorted(file_system.unstrip_protocol(each) for each in file_system.glob(path))


def _open(url: str, storage_options: Mapping[str, Any]) -> BinaryIO:
    ending = Path(url).suffix
    if _is_local(url) and ending in _COMPRESSED:
        return cast("BinaryIO", _COMPRESSED[ending](url))
    if _is_local(url) and ending != ".zst":
        return Path(url).open("rb", _READ)
    file: Any = _import_fsspec(url).open(url, "rb", compression="infer", **storage_options).open()
    # fsspec's own files read lines one by one in Python.
    return file if ending in _COMPRESSED else cast("BinaryIO", io.BufferedReader(file, _READ))


def _import_fsspec(url: str) -> Any:
    # Only those need it whose shards are elsewhere; it takes 60 ms.
    try:
        return importlib.import_module("fsspec")
    except ImportError as error:
        raise MissingExtraError(
            f"shard {url} is no local file, and reading it needs fsspec, which is not installed. "
            "Run `pip install parhelion[streams]`."
        ) from error
