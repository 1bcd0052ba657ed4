"""A store in which processes that torchrun has started again find nothing of those that were there before them.

torchrun keeps one store for all starts of its processes. Where the ones before left their addresses there, the next
ones take these for each other's and wait in vain (pytorch issue 135712). What torchrun says of the number of the start
differs between machines, so the processes agree on a word of their own.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from datetime import timedelta
from typing import Any, Final, cast

import torch.distributed

from parhelion.errors import WorldError

__all__ = ["open_store"]

_SECONDS: Final = 1800.0  # as long as torch itself waits
_PAUSE: Final = 0.02
_distributed: Any = torch.distributed  # its stores have no types


def open_store(rank: int, size: int) -> Any:
    """Return a store for the process group, or None where the one that torch makes will do.

    Raises:
        WorldError: the other processes do not come.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared = _distributed.TCPStore(host, port, size, is_master=False, timeout=timedelta(seconds=_SECONDS))
    return _distributed.PrefixStore(f"parhelion/{agree(shared, rank, size, _SECONDS)}", shared)


def agree(store: Any, rank: int, size: int, seconds: float) -> str:
    """Return a word that all processes of this start have, and none of an earlier one.

    Each leaves a token. The first calls out a word with the tokens that it has seen; who finds its own among them
    answers to the word; when all have, it is agreed. With tokens of an earlier start in it no call is answered by all.

    Raises:
        WorldError: they do not come in time.
    """
    own, deadline = secrets.token_hex(8), time.monotonic() + seconds
    store.set(f"parhelion/here/{rank}", own)
    word, called = "", [""] * size
    while time.monotonic() < deadline:
        if rank == 0:
            here = [_read(store, f"here/{each}") for each in range(size)]
            if "" not in here and here != called:
                word, called = secrets.token_hex(8), here
                store.set("parhelion/call", json.dumps([word, called]))
            if word and all(_read(store, f"heard/{word}/{each}") for each in range(1, size)):
                store.set(f"parhelion/go/{word}", "1")
                return word
        elif call := _read(store, "call"):
            word, called = cast("tuple[str, list[str]]", json.loads(call))
            if called[rank : rank + 1] == [own]:
                store.set(f"parhelion/heard/{word}/{rank}", "1")
                if _read(store, f"go/{word}"):
                    return word
        time.sleep(_PAUSE)
    raise WorldError(
        f"process {rank} of {size} has not met all others in the store of torchrun within {seconds:g} s; expected all "
        "of them there. See why they have not started."
    )


def _read(store: Any, key: str) -> str:
    """Return what is there, or nothing."""
    name = f"parhelion/{key}"
    return str(store.get(name).decode()) if store.check([name]) else ""
