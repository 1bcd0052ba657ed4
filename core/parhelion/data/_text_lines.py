"""Text files, a record to a line."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping
from os import PathLike
from typing import Any, BinaryIO

from parhelion.errors import InvalidTypeError, RecordError

from ._shards import Located, ShardStream

__all__ = ["TextLines"]


class TextLines(ShardStream):
    r"""Lines of text files, in UTF-8, without their ends (``\n`` or ``\r\n``); or what each line says as JSON.

    Args:
        urls, num_lanes, storage_options: see :class:`ShardStream`.
        as_json: whether lines are JSON, of which blank ones are left out; None means where a file is named ``.jsonl``
            or ``.ndjson``, also with a compression behind that.

    Raises:
        InvalidTypeError: an argument has a type that cannot work.
        InvalidValueError: an argument is out of range.
        MissingExtraError: a file needs fsspec, which is not installed.
    """

    def __init__(
        self,
        urls: str | PathLike[str] | Iterable[str | PathLike[str]],
        *,
        as_json: bool | None = None,
        num_lanes: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(urls, num_lanes=num_lanes, storage_options=storage_options)
        if as_json not in (True, False, None):
            raise InvalidTypeError(f"as_json is {as_json!r}; expected True, False or None. None goes by the name.")
        self._as_json = as_json

    def read(self, file: BinaryIO, offset: int, url: str) -> Generator[Located, None, None]:
        """Yield the lines from ``offset`` on."""
        endings = url.lower().rpartition("/")[2].split(".")[1:]
        as_json = {"jsonl", "ndjson"} & {*endings} if self._as_json is None else self._as_json
        for line in file:
            begin, offset = offset, offset + len(line)
            if as_json and not line.strip():
                continue
            yield Located(_parse(line, begin, url, is_json=bool(as_json)), offset)


def _parse(line: bytes, offset: int, url: str, *, is_json: bool) -> Any:
    try:
        return json.loads(line) if is_json else line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except ValueError as error:
        expected = "JSON" if is_json else "UTF-8 text"
        raise RecordError(
            f"the line at byte {offset} of {url} cannot be read ({type(error).__name__}: {error}); expected "
            f"{expected}. Mend the file, or convert it first."
        ) from error
