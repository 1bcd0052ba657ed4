"""Names for classes and functions, so that a configuration file can ask for them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, overload

from .errors import DuplicateNameError, InvalidTypeError, InvalidValueError, UnknownNameError

__all__ = ["Registry", "update_all_registries"]

T = TypeVar("T")
Entry = TypeVar("Entry", bound=Callable[..., Any])


class Registry(Generic[T]):
    """A table from names to classes or functions.

    Every spelling of the decorator works: ``@R``, ``@R.register``, ``@R.register()``,
    ``@R.register(name="x", aliases=("y",))``, and so does the plain call ``R.register(obj)``.

    A registry with a ``parent`` is a child that shadows: it is asked first, the parent next.

    Args:
        kind: what the entries are, in the singular, for messages ("dataset").
        parent: the registry to fall back to.
    """

    def __init__(self, kind: str, parent: Registry[T] | None = None) -> None:
        self._kind = kind
        self._parent = parent
        self._entries: dict[str, T] = {}
        self._lazy: dict[str, str] = {}

    @overload
    def register(self, entry: Entry, /, *, name: str | None = ..., aliases: Iterable[str] = ...) -> Entry: ...
    @overload
    def register(
        self, entry: None = ..., /, *, name: str | None = ..., aliases: Iterable[str] = ...
    ) -> Callable[[Entry], Entry]: ...
    def register(self, entry: Any = None, /, *, name: str | None = None, aliases: Iterable[str] = ()) -> Any:
        """Add ``entry`` under ``name`` (its ``__name__`` by default) and every alias; return it unchanged.

        Registering the same object again under a name it already has changes nothing.

        Raises:
            DuplicateNameError: a name belongs to another entry; nothing was added.
            InvalidTypeError: ``entry`` is not callable.
        """
        if entry is None:

            def decorate(decorated: Any) -> Any:
                return self.register(decorated, name=name, aliases=aliases)

            return decorate
        if not callable(entry):
            raise InvalidTypeError(
                f"a {self._kind} to register is {entry!r}; expected a class or a function. "
                "Write @REGISTRY.register(name=...) to choose its name."
            )
        names = [getattr(entry, "__name__", "") if name is None else name, *aliases]
        for each in names:
            self._check_free(each, entry)
        for each in names:
            self._entries[each] = cast("T", entry)
        return cast("Any", entry)

    __call__ = register

    def register_lazy(self, name: str, target: str) -> None:
        """Add ``name`` for the object at ``target`` ("package.module:attribute"), imported when asked for.

        The module may register the object under that name itself.

        Raises:
            DuplicateNameError: the name is taken.
            InvalidValueError: ``target`` is not of that form.
        """
        module, _, attribute = target.partition(":")
        if not module or not attribute:
            raise InvalidValueError(f"lazy target of {name!r} is {target!r}; expected 'package.module:attribute'.")
        if self._lazy.get(name) != target:
            self._check_free(name, None)
            self._lazy[name] = target

    def get(self, name: str) -> T:
        """Return the entry called ``name``.

        Raises:
            UnknownNameError: there is none, here or in a parent; near matches are named.
        """
        if name in self._entries:
            return self._entries[name]
        if name in self._lazy:
            module, _, attribute = self._lazy[name].partition(":")
            entry: T = getattr(importlib.import_module(module), attribute)
            self._entries[name] = entry
            return entry
        if self._parent is not None and name in self._parent:
            return self._parent.get(name)
        raise UnknownNameError(self._unknown(name))

    def names(self) -> list[str]:
        """Return every name and alias, sorted, a parent's included."""
        inherited = [] if self._parent is None else self._parent.names()
        return sorted({*inherited, *self._entries, *self._lazy})

    def __contains__(self, name: object) -> bool:
        inherited = self._parent is not None and name in self._parent
        return inherited or name in self._entries or name in self._lazy

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __repr__(self) -> str:
        return f"Registry({self._kind!r}, {self.names()})"

    def _check_free(self, name: str, entry: object) -> None:
        if not name or not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValueError(
                f"name of a {self._kind} is {name!r}; expected a non-empty string. Pass name='...'."
            )
        taken = self._entries.get(name, self._lazy.get(name))
        own_target = f"{getattr(entry, '__module__', '')}:{getattr(entry, '__qualname__', '')}"
        if taken is not None and taken is not entry and taken != own_target:
            raise DuplicateNameError(
                f"{self._kind} name {name!r} is taken by {taken!r}; names are unique. "
                "Register under another one with name='...'."
            )

    def _unknown(self, name: str) -> str:
        known = self.names()
        near = difflib.get_close_matches(str(name), known, n=3)
        folded = [k for k in known if k.lower() == str(name).lower() and k not in near]
        guess = f" Did you mean {' or '.join(map(repr, folded + near))}?" if folded + near else ""
        return (
            f"{self._kind} name is {name!r}; expected one of "
            f"{', '.join(known) or 'none, the registry is empty'}.{guess} "
            "A name exists once the module that registers it has been imported."
        )


def update_all_registries(root: Path, recurse: bool = True, import_prefix: str = "") -> list[str]:
    """Import every module under ``root``, so that the registrations in it run.

    Modules are imported in sorted order by the name that their path has below ``root``, behind
    ``import_prefix`` ("project" makes ``models/cnn.py`` the module ``project.models.cnn``). The parent
    of the top package must be importable already.

    Args:
        root: folder to look in. Files and folders whose name starts with "_" or "." are left out.
        recurse: also look into sub-folders.
        import_prefix: what to put before each module's name, with or without a closing dot.

    Returns:
        The names of the modules, in the order they were imported.

    Raises:
        InvalidValueError: ``root`` is no folder.
        ImportError: a module cannot be imported, with the original error chained and the file named; or its
            name belongs to another file.
    """
    root = Path(root)
    if not root.is_dir():
        raise InvalidValueError(
            f"root of the modules to import is {str(root)!r}; expected an existing folder. "
            "Give it relative to the working directory, or whole."
        )
    importlib.invalidate_caches()  # a file written a moment ago would not be found
    prefix = f"{import_prefix.rstrip('.')}." if import_prefix else ""
    imported: list[str] = []
    for file in sorted(root.rglob("*.py") if recurse else root.glob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if any(part.startswith(("_", ".")) for part in parts):
            continue
        module = prefix + ".".join(parts)
        _import_file(module, file, import_prefix)
        imported.append(module)
    return imported


def _import_file(module: str, file: Path, import_prefix: str) -> None:
    try:
        found = importlib.import_module(module).__file__
    except Exception as error:
        raise ImportError(
            f"importing {module!r} for its registrations failed ({type(error).__name__}: {error}); the file "
            f"is {file}. Check import_prefix ({import_prefix!r}) and that its parent folder is on sys.path."
        ) from error
    if found is None or Path(found).resolve() != file.resolve():
        raise ImportError(
            f"importing {module!r} for its registrations gave {found}; expected {file}. Another module has "
            "that name: put the folder into a package and pass its name as import_prefix."
        )
