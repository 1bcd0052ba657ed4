"""The package without what its ``__init__`` imports, for processes that load data and nothing else.

That takes half the time to start. What code in such a process asks the package for comes from the few rooms that are
loaded; the first name that is in none of them runs ``__init__`` as usual.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__all__ = ["BOOT", "furnish"]

BOOT = """
import importlib.util, sys
sys.modules["parhelion"] = importlib.util.module_from_spec(importlib.util.find_spec("parhelion"))
from parhelion._bare import furnish
furnish(sys.modules["parhelion"])
"""
"""What a fresh interpreter runs first; ``sys.path`` must be right by then."""

_ROOMS = ("seeds", "sampling", "registry", "errors", "data")


class _Bare(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__version__", "__all__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        for room in _ROOMS:
            module = sys.modules.get(f"{self.__name__}.{room}")
            if module is not None and name in vars(module):
                return vars(module)[name]
        spec: Any = self.__spec__
        self.__class__ = ModuleType  # type: ignore[assignment]  # from here on it is like any other
        spec.loader.exec_module(self)
        return getattr(self, name)


def furnish(package: ModuleType) -> None:
    """Let a package whose ``__init__`` has not run answer as if it had.

    Args:
        package: in ``sys.modules``, made from its spec.
    """
    package.__class__ = _Bare
