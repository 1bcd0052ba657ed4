"""Where checkpoints lie: folders of this machine's file system, and URLs."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path
from typing import Final, TypeAlias

import attrs

from parhelion.errors import InvalidValueError

__all__ = ["Place", "RemotePath", "Where", "as_place"]

_LOCAL: Final = ("file", "local")
_COLLAPSED: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def _strip(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    if not mark or not scheme or not rest.strip("/") or "::" in url:
        raise InvalidValueError(
            f"URL is {url!r}; expected '<scheme>://<place>', such as 's3://bucket/runs', and no '::'. Name a place in "
            "it."
        )
    return f"{scheme}://{rest.rstrip('/')}"


@attrs.frozen
class RemotePath:
    """A place that fsspec reaches, such as ``s3://bucket/runs/one``. It joins and prints as a Path does.

    Attributes:
        url: the whole of it, without a slash at its end.
    """

    url: str = attrs.field(converter=_strip)

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The place that this one lies in.

        Raises:
            InvalidValueError: there is none above.
        """
        return RemotePath(self.url.rpartition("/")[0])

    def with_name(self, name: str) -> RemotePath:
        """Return the place beside this one that has another name."""
        return self.parent / name

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name.strip('/')}")

    def __str__(self) -> str:
        return self.url


Place: TypeAlias = Path | RemotePath
Where: TypeAlias = Path | RemotePath | str


def as_place(where: Where) -> Place:
    """Return a path for what lies in the file system (also as ``file://``), a RemotePath for any other URL.

    Raises:
        InvalidValueError: a URL was made a Path, which drops one of its slashes, or names no place.
    """
    if isinstance(where, RemotePath):
        return where
    if isinstance(where, str) and "://" in where:
        scheme, _, rest = where.partition("://")
        if scheme in _LOCAL:
            return Path(urllib.parse.unquote(rest))
        return RemotePath(where)
    path = Path(where)
    if path.parts and _COLLAPSED.fullmatch(path.parts[0]) and not Path(path.parts[0]).exists():
        url = str(path).replace(":/", "://", 1)
        raise InvalidValueError(f"path is {str(path)!r}, a URL that was made a Path; expected the URL. Pass {url!r}.")
    return path
