"""The host's generators: seeded, captured, restored and set aside together.

jax has none: its keys are values, and the model derives each from the run's seed.
"""

from __future__ import annotations

from parhelion.generators import PythonGenerators

__all__ = ["Randomness"]


class Randomness(PythonGenerators):
    """The generators that a training step may draw from beside its key: Python's ``random`` and NumPy's legacy one."""
