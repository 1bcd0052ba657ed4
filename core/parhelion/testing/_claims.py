"""How a contract speaks: a fact that does not hold raises an error that reads as a sentence."""

from __future__ import annotations

from collections.abc import Callable

from parhelion.errors import ContractError

__all__ = ["claim", "claim_raises"]


def claim(fact: object, message: str) -> None:
    """Raise ContractError with the message unless the fact holds."""
    if not fact:
        raise ContractError(message)


def claim_raises(kind: type[Exception], act: Callable[[], object], what: str) -> Exception:
    """Return the error of that kind that ``act`` raises; anything else breaks the contract.

    Args:
        kind: the error that is expected.
        act: what should fail.
        what: names it in the message.
    """
    try:
        found = act()
    except kind as error:
        return error
    except Exception as error:
        raise ContractError(
            f"{what} should raise {kind.__name__} and raised {type(error).__name__}: {error}"
        ) from error
    raise ContractError(f"{what} should raise {kind.__name__} and returned {found!r}")
