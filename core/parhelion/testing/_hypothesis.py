"""Hypothesis, or an error that says how to get it."""

from __future__ import annotations

from parhelion.errors import MissingExtraError

try:
    import hypothesis as hypothesis
    from hypothesis import strategies as strategies
except ImportError as error:
    raise MissingExtraError(
        "parhelion.testing makes its examples with hypothesis, which is not installed; "
        "install it with: pip install 'parhelion[testing]'"
    ) from error
