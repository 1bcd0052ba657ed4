"""The host's generators: seeded, captured, restored and set aside together.

jax has none: its keys are values, and the model derives each from the run's seed.
"""

from __future__ import annotations

import sys
from typing import Any

from parhelion.seeds import PythonGenerators

__all__ = ["FetchGenerators", "Randomness"]


class Randomness(PythonGenerators):
    """The generators that a training step may draw from beside its key: Python's ``random`` and NumPy's legacy one."""


class FetchGenerators(PythonGenerators):
    """Python's ``random``, NumPy's legacy generator, and torch's CPU one where something has imported torch.

    A dataset written for torch draws its augmentation from there; keyed, it draws what it does under torch's
    loader. Such a dataset imports torch where it is defined, not in the middle of a fetch.
    """

    def seed(self, seed: int) -> None:
        """Start all of them at the stream of ``seed``, a 64-bit integer."""
        super().seed(seed)
        if (generator := _find_torch()) is not None:
            generator.manual_seed(seed)

    def set_aside(self) -> Any:
        """Return what :meth:`put_back` needs to bring the streams back."""
        generator = _find_torch()
        return super().set_aside(), None if generator is None else generator.get_state()

    def put_back(self, aside: Any) -> None:
        """Bring the streams back, where they were."""
        python, own = aside
        super().put_back(python)
        generator = _find_torch()
        if generator is not None and own is not None:
            generator.set_state(own)

    def __reduce__(self) -> Any:
        # To have this class, a worker process would load all of jax: 130 MiB and 0.3 s each.
        return PythonGenerators if _find_torch() is None else type(self), ()


def _find_torch() -> Any | None:
    """Return torch's CPU generator if something has imported torch; nothing here does."""
    torch = sys.modules.get("torch")
    return getattr(torch, "default_generator", None)
