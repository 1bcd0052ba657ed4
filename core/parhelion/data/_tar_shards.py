"""Tar shards as WebDataset lays them out: the files of a record follow each other and share a name up to its dot."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Generator, Iterable, Mapping
from os import PathLike
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from parhelion.errors import DataError, InvalidTypeError, RecordError

from ._shards import Located, ShardStream

__all__ = ["TarShards"]

_BLOCK: Final = 512
_NAME: Final = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")
_META: Final = re.compile(r"(?:^|/)__[^/]*__(?:$|/)")

Decode = Callable[[dict[str, Any]], Any]


def _read_text(data: bytes) -> str:
    return data.decode()


def _read_int(data: bytes) -> int:
    return int(data.decode())


def _read_npy(data: bytes) -> Any:
    return np.load(io.BytesIO(data), allow_pickle=False)


def _read_npz(data: bytes) -> Any:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


_READERS: Final[Mapping[str, Callable[[bytes], Any]]] = {
    **dict.fromkeys(("json", "jsn"), json.loads),
    **dict.fromkeys(("txt", "text", "transcript"), _read_text),
    **dict.fromkeys(("cls", "cls2", "class", "count", "index", "inx", "id"), _read_int),
    "npy": _read_npy,
    "npz": _read_npz,
}


class TarShards(ShardStream):
    """Records out of tar files.

    The files whose names are equal up to the first dot behind the last slash, and which follow each other, are one
    record: ``{"__key__": name, extension: content, ...}``, extensions in lower case. Names that begin with a dot, have
    none, or are ``__like_this__`` are left out.

    By the last part of the extension json becomes what it says, txt text, cls and index an int, npy an array, npz a
    dict of arrays; anything else stays bytes. Nothing is unpickled.

    Args:
        urls, num_lanes, storage_options: see :class:`ShardStream`.
        decode: a function of a record with bytes in it that returns the record; or functions of the bytes by extension,
            beside the ones above. It runs in the worker. Leave out what is random: ``map`` is keyed.

    Raises:
        InvalidTypeError: an argument has a type that cannot work.
        InvalidValueError: an argument is out of range.
        MissingExtraError: a shard needs fsspec, which is not installed.
    """

    def __init__(
        self,
        urls: str | PathLike[str] | Iterable[str | PathLike[str]],
        *,
        decode: Decode | Mapping[str, Callable[[bytes], Any]] | None = None,
        num_lanes: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(urls, num_lanes=num_lanes, storage_options=storage_options)
        given: Any = decode
        if given is not None and not isinstance(given, Mapping) and not callable(given):
            raise InvalidTypeError(
                f"decode is {given!r}; expected a function of a record, or functions of bytes by extension. Pass "
                "decode=dict to keep the bytes."
            )
        self._whole = decode if callable(decode) else None
        self._readers = {**_READERS, **decode} if isinstance(decode, Mapping) else _READERS

    def read(self, file: BinaryIO, offset: int, url: str) -> Generator[Located, None, None]:
        """Yield the records from ``offset`` on."""
        record: dict[str, Any] = {}
        for member in _read_members(file, offset, url):
            match = None if _META.search(member.name) else _NAME.fullmatch(member.name)
            if match is None:
                continue
            key, extension = match[1], match[2].lower()
            if record and record["__key__"] != key:
                yield Located(self._decode(record, url), member.offset)
                record = {}
            record.setdefault("__key__", key)
            if extension in record:
                raise DataError(
                    f"record {key!r} of shard {url} has two files with extension {extension!r}, the second at byte "
                    f"{member.offset}; expected one. Give them different extensions, such as 1.{extension}."
                )
            record[extension] = member.content
            offset = member.next_offset
        if record:
            yield Located(self._decode(record, url), offset)

    def _decode(self, record: dict[str, Any], url: str) -> Any:
        try:
            if self._whole is not None:
                return self._whole(record)
            return {
                name: value if name == "__key__" else self._read_file(name, value) for name, value in record.items()
            }
        except Exception as error:
            raise RecordError(
                f"record {record.get('__key__')!r} of shard {url} cannot be decoded ({type(error).__name__}: {error}); "
                "expected files that are what their extensions say. Pass decode= to read them in another way."
            ) from error

    def _read_file(self, extension: str, content: Any) -> Any:
        reader = self._readers.get(extension) or self._readers.get(extension.rpartition(".")[2])
        return content if reader is None else reader(content)


class _Member(NamedTuple):
    name: str
    content: bytes
    offset: int  # of the first header that belongs to it
    next_offset: int


def _read_members(file: BinaryIO, offset: int, url: str) -> Generator[_Member, None, None]:
    """Yield the regular files of a tar from a header on, reading forward only.

    The standard library's reader steps back by a byte, for which a compressed file begins again, and takes a damaged
    header for the end. Formats: POSIX.1-2001 (pax) and GNU tar's long names.
    """
    begin = offset
    name: str | None = None
    size: int | None = None
    while True:
        header = _take(file, _BLOCK, offset, url)
        if not header.strip(b"\0"):
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _damaged(url, offset, str(error)) from error
        is_file = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
        length = info.size if size is None or not is_file else size
        content = _take(file, length + -length % _BLOCK, offset + _BLOCK, url)[:length]
        offset += _BLOCK + length + -length % _BLOCK
        if info.type == tarfile.GNUTYPE_LONGNAME:
            name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            told = _read_pax(content)
            name = told.get("path", name)
            size = int(told["size"]) if "size" in told else size
        elif info.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            if is_file:
                yield _Member(info.name if name is None else name, content, begin, offset)
            begin, name, size = offset, None, None


def _take(file: BinaryIO, size: int, offset: int, url: str) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise _damaged(url, offset, f"the file ends after {len(data)} of {size} bytes")
    return data


def _damaged(url: str, offset: int, what: str) -> DataError:
    return DataError(
        f"shard {url} is damaged at byte {offset} ({what}); expected a tar file with its end marks. Write it again."
    )


def _read_pax(content: bytes) -> dict[str, str]:
    """Return the records ``length keyword=value`` of an extended header."""
    told: dict[str, str] = {}
    while content and content[0]:
        length = int(content.partition(b" ")[0])
        keyword, _, value = content[:length].partition(b" ")[2].partition(b"=")
        told[keyword.decode()] = value.removesuffix(b"\n").decode("utf-8", "surrogateescape")
        content = content[length:]
    return told
