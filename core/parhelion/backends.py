"""Backends by name, so that one experiment runs on any of them."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
from types import ModuleType
from typing import TYPE_CHECKING, Final

import attrs

from .errors import BackendNotFoundError, InvalidTypeError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["available_backends", "load_backend"]

_GROUP: Final = "parhelion.backends"
_VARIABLE: Final = "PARHELION_BACKEND"
# What an experiment that is written for any backend takes from it.
_REQUIRED: Final = ("LossModel", "Model", "Trainer", "create_dataloader", "create_sampler")


@attrs.frozen
class _Own:
    """A backend of this distribution; its package is always there, what it needs comes with an extra.

    Attributes:
        module: its package.
        framework: what makes it installed.
        needs: everything that its import may find missing.
    """

    module: str
    framework: str
    needs: tuple[str, ...]


# Known without any metadata, so that a checkout works too. The extras have the same names.
_OWN: Final = {
    "torch": _Own("parhelion_torch", "torch", ("torch",)),
    "jax": _Own("parhelion_jax", "jax", ("jax", "jaxlib", "optax")),
}


def available_backends() -> list[str]:
    """Return the names of the backends that can be loaded here, sorted; nothing is imported.

    This package's own ones are there when their framework is installed, others when a distribution declares them with
    an entry point of the group ``parhelion.backends``.
    """
    own = [name for name, backend in _OWN.items() if _is_installed(backend.framework)]
    return sorted([*own, *_third_parties()])


def load_backend(name: str | None = None) -> ModuleType:
    """Return the package of a backend, as ``import parhelion_torch as backend`` would.

    Args:
        name: "torch", "jax", or that of an entry point of the group ``parhelion.backends``. If None, the environment
            variable ``PARHELION_BACKEND`` says it; if that is empty too, it is the only backend installed.

    Raises:
        BackendNotFoundError: (an ImportError) there is none of that name, it cannot be imported, it lacks names that
            every backend has, or there is not exactly one to choose.
        InvalidTypeError: the name is no string.
    """
    if name is not None and not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
        raise InvalidTypeError(f"name of the backend is {name!r}; expected a string such as 'torch', or None.")
    source = "name of the backend"
    if name is None:
        name, source = os.environ.get(_VARIABLE) or _only_one(), _VARIABLE
    if name in _OWN:
        return _checked(name, _import_own(name, _OWN[name]))
    third_parties = _third_parties()
    if name not in third_parties:
        raise BackendNotFoundError(_unknown(source, name, [*_OWN, *third_parties]))
    return _checked(name, _import_third_party(name, third_parties[name]))


def _is_installed(framework: str) -> bool:
    try:
        return importlib.util.find_spec(framework) is not None
    except ValueError:  # it was put into sys.modules by hand, without a spec
        return True


def _third_parties() -> dict[str, list[EntryPoint]]:
    """Return the entry points of other distributions by name; the names of our own backends stay ours."""
    # Looking through the metadata of everything installed: its import alone takes 20 ms.
    from importlib.metadata import entry_points  # noqa: PLC0415

    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=_GROUP):
        if point.name not in _OWN:
            found.setdefault(point.name, []).append(point)
    return found


def _only_one() -> str:
    names = available_backends()
    if len(names) == 1:
        return names[0]
    if not names:
        raise BackendNotFoundError(
            "no backend is installed; expected one. Install one with: pip install 'parhelion[torch]', or "
            "pip install 'parhelion[jax]'."
        )
    raise BackendNotFoundError(
        f"{len(names)} backends are installed ({', '.join(names)}) and none was chosen; expected a name. Pass one, as "
        f"in load_backend({names[0]!r}), or set the environment variable {_VARIABLE}."
    )


def _unknown(source: str, name: str, known: list[str]) -> str:
    by_spelling = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold().removeprefix("parhelion_"), by_spelling, n=1)
    hint = f" Did you mean {by_spelling[close[0]]!r}?" if close else ""
    return (
        f"{source} is {name!r}; expected one of {', '.join(map(repr, sorted(known)))}.{hint} A package adds one with "
        f"an entry point of the group {_GROUP!r}."
    )


def _import_own(name: str, own: _Own) -> ModuleType:
    try:
        return importlib.import_module(own.module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in own.needs:
            raise
        raise BackendNotFoundError(
            f"backend {name!r} needs {missing}, which is not installed; install it with: pip install "
            f"'parhelion[{name}]'"
        ) from error


def _import_third_party(name: str, points: list[EntryPoint]) -> ModuleType:
    owners = sorted(_distribution(point) for point in points)
    if len({point.value for point in points}) > 1:
        raise BackendNotFoundError(
            f"backend {name!r} is declared by {' and '.join(owners)}; expected one of them. Uninstall the other."
        )
    try:
        module = points[0].load()
    except Exception as error:
        raise BackendNotFoundError(
            f"backend {name!r} of the distribution {owners[0]} cannot be imported ({points[0].value}): "
            f"{type(error).__name__}: {error}. Reinstall or uninstall {owners[0]}."
        ) from error
    if not isinstance(module, ModuleType):
        raise BackendNotFoundError(
            f"backend {name!r} of the distribution {owners[0]} is {module!r}; expected a module. Its entry point "
            f"should be {points[0].module!r}, without an attribute."
        )
    return module


def _distribution(point: EntryPoint) -> str:
    return repr(point.dist.name) if point.dist is not None else "'unknown'"


def _checked(name: str, module: ModuleType) -> ModuleType:
    """Return the module if it has what every backend has."""
    missing = [each for each in _REQUIRED if not hasattr(module, each)]
    if missing:
        raise BackendNotFoundError(
            f"backend {name!r} ({module.__name__}) lacks {', '.join(missing)}; expected a module with "
            f"{', '.join(_REQUIRED)}. Install versions that belong together."
        )
    return module
