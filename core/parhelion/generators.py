"""The process-wide generators that user code draws from, seeded, captured and set aside within microseconds.

The seeding of ``random``, of NumPy's legacy generator and of torch's is made for once per run: together 25 us, and as
much again to bring back what was there before. A fetch does it for every batch. So the states are written where
they are kept: those of Python's and NumPy's Mersenne Twisters are 624 words each, which a counter-based generator
fills. Where a state does not lie as expected, the same words go in by the documented way.
"""

from __future__ import annotations

import ctypes
import functools
import random
import sys
from collections.abc import Callable
from collections.abc import Generator as Yields
from contextlib import contextmanager
from typing import Any, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

__all__ = ["GlobalGenerators", "LoadedGenerators", "PythonGenerators"]

_WORDS: Final = 624  # of a Mersenne Twister's state; behind them in memory, or before, is the number used up
_Words = npt.NDArray[np.uint32]
_random: Any = random  # its hidden instance is what the module's functions belong to
_legacy: Any = np.random.mtrand


class GlobalGenerators(Protocol):
    """The process-wide generators that user code may draw from: seeded, captured and restored together.

    ``capture`` gives what a checkpoint holds; ``set_aside`` and ``put_back`` are for the moment of a fetch,
    and quick.
    """

    def seed(self, seed: int) -> None:
        """Start every generator at the stream of ``seed``."""
        ...

    def capture(self) -> Any:
        """Return the state of every generator."""
        ...

    def restore(self, state: Any) -> None:
        """Continue every generator from a captured state."""
        ...

    def set_aside(self) -> Any:
        """Return what :meth:`put_back` needs to bring the present streams back; seed before drawing again."""
        ...

    def put_back(self, aside: Any) -> None:
        """Bring the streams back that were set aside, where they were."""
        ...


class _Python:
    """The generator behind the functions of ``random``: a C struct of the words used up, then the words."""

    def __init__(self) -> None:
        self._memory: memoryview | None = None
        try:
            memory = (ctypes.c_uint32 * (_WORDS + 1)).from_address(id(_random._inst) + object.__basicsize__)  # noqa: SLF001
            if (*memory[1:], memory[0]) == random.getstate()[1]:
                self._memory = memoryview(memory).cast("B")
        except AttributeError:
            pass

    def set_aside(self) -> Any:
        memory = self._memory
        return random.getstate() if memory is None else (bytes(memory), _random._inst.gauss_next)  # noqa: SLF001

    def put_back(self, aside: Any) -> None:
        memory = self._memory
        if memory is None:
            random.setstate(aside)
        else:
            memory[:], _random._inst.gauss_next = aside  # noqa: SLF001

    def start(self, words: _Words) -> None:
        memory = self._memory
        if memory is None:
            random.setstate((3, (*words.tolist(), _WORDS), None))
        else:
            memory[:4] = _USED_UP
            memory[4:] = words.data.cast("B")
            _random._inst.gauss_next = None  # noqa: SLF001


class _LegacyNumPy:
    """NumPy's legacy generator: the words, then how many are used up, at the address it gives to C extensions.

    (``BitGenerator.ctypes``.) The user may have chosen another bit generator, which has no such memory.
    """

    def __init__(self) -> None:
        self._owner: object = None
        self._memory: memoryview | None = None

    def set_aside(self) -> Callable[[], None]:
        """Return what brings the stream back."""
        owner, memory = _legacy.get_bit_generator(), self._find_memory()
        if memory is None:
            return functools.partial(self._restore, owner, np.random.get_state(legacy=False))  # noqa: NPY002
        before = bytes(memory)
        # Gaussians are made in pairs. If one is waiting, it comes out here and the twister does not move.
        gauss = np.random.standard_normal()  # noqa: NPY002
        if bytes(memory) != before:  # much quicker than comparing the view
            return functools.partial(self._restore_bytes, owner, memory, before)
        words = np.frombuffer(before, np.uint32)
        twister = {"bit_generator": "MT19937", "state": {"key": words[:-1], "pos": int(words[-1])}}
        return functools.partial(self._restore, owner, {**twister, "has_gauss": 1, "gauss": gauss})

    def start(self, words: _Words) -> None:
        """Start at the stream of these words."""
        memory = self._find_memory()
        if memory is not None:
            memory[:-4] = words.data.cast("B")
            memory[-4:] = _USED_UP
            _legacy.set_bit_generator(self._owner)  # forgets a Gaussian that waits
            return
        if type(_legacy.get_bit_generator()) is not np.random.MT19937:
            # Not in the one that the user chose: it is to be put back as it was.
            _legacy.set_bit_generator(np.random.MT19937(0))
        np.random.set_state(("MT19937", words, _WORDS, 0, 0.0))  # noqa: NPY002

    def _restore(self, owner: np.random.BitGenerator, state: Any) -> None:
        _legacy.set_bit_generator(owner)
        np.random.set_state(state)  # noqa: NPY002

    def _restore_bytes(self, owner: np.random.BitGenerator, memory: memoryview, before: bytes) -> None:
        _legacy.set_bit_generator(owner)  # forgets a Gaussian that waits
        memory[:] = before

    def _find_memory(self) -> memoryview | None:
        owner = _legacy.get_bit_generator()
        if owner is not self._owner:
            self._owner, self._memory = owner, None
            if type(owner) is np.random.MT19937:
                words = (ctypes.c_uint32 * (_WORDS + 1)).from_address(owner.ctypes.state_address)
                state: Any = owner.state["state"]
                if (*words,) == (*state["key"].tolist(), state["pos"]):
                    self._memory = memoryview(words).cast("B")
        return self._memory


class _Source:
    """Gives the words of a seed: Philox, keyed with it."""

    def __init__(self) -> None:
        self._bits: Any = np.random.Philox(key=0)
        self._state: dict[str, Any] = dict(self._bits.state)
        self._key: npt.NDArray[np.uint64] = np.zeros(2, np.uint64)
        # A purpose of its own, so that no sample's stream is among them.
        self._state["state"] = {"counter": np.array([0, 0, 0, 1], np.uint64), "key": self._key}

    def words(self, seed: int) -> _Words:
        """Return uint32 of shape (2, 624)."""
        self._key[0] = seed
        self._bits.state = self._state
        raw = self._bits.random_raw(_WORDS).astype("<u8", copy=False)
        words: _Words = raw.view("<u4").astype(np.uint32, copy=False).reshape(2, _WORDS)
        return words


_USED_UP: Final = np.uint32(_WORDS).tobytes()
_python, _legacy_numpy, _source = _Python(), _LegacyNumPy(), _Source()


class PythonGenerators:
    """Python's ``random`` and NumPy's legacy generator."""

    def seed(self, seed: int) -> None:
        """Start both at the stream of ``seed``, a 64-bit integer."""
        of_python, of_numpy = _source.words(seed)
        _python.start(of_python)
        _legacy_numpy.start(of_numpy)

    def capture(self) -> dict[str, Any]:
        """Return both states as plain values and arrays."""
        version, words, gauss = random.getstate()
        legacy = np.random.get_state(legacy=False)  # noqa: NPY002
        return {"random": [version, np.array(words, np.uint32), gauss], "numpy": legacy}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue both from what :meth:`capture` returned."""
        version, words, gauss = state["random"]
        random.setstate((version, tuple(words.tolist()), gauss))
        np.random.set_state(state["numpy"])  # noqa: NPY002

    def set_aside(self) -> Any:
        """Return what :meth:`put_back` needs to bring both streams back."""
        return _python.set_aside(), _legacy_numpy.set_aside()

    @contextmanager
    def aside(self) -> Yields[None]:
        """Return a context after which every generator that :meth:`capture` knows is where it was before."""
        state = self.capture()
        try:
            yield
        finally:
            self.restore(state)

    def put_back(self, aside: Any) -> None:
        """Bring both streams back, where they were."""
        python, restore = aside
        _python.put_back(python)
        restore()


class LoadedGenerators(PythonGenerators):
    """Python's ``random``, NumPy's legacy generator, and torch's CPU one where something has loaded torch.

    What a fetch keys: a dataset written for torch draws its augmentation from there, on any backend and in worker
    processes, which load torch only for datasets that do. Such a dataset imports torch where it is defined, not in the
    middle of a fetch.
    """

    def seed(self, seed: int) -> None:
        """Start all of them at the stream of ``seed``, a 64-bit integer."""
        super().seed(seed)
        if (generator := _find_torch()) is not None:
            generator.manual_seed(seed)  # torch.manual_seed takes eighty times as long: it looks for devices

    def set_aside(self) -> Any:
        """Return what :meth:`put_back` needs to bring the streams back."""
        generator = _find_torch()
        return super().set_aside(), None if generator is None else generator.get_state()

    def put_back(self, aside: Any) -> None:
        """Bring the streams back, where they were."""
        python, own = aside
        super().put_back(python)
        if own is not None:
            cast("Any", _find_torch()).set_state(own)


def _find_torch() -> Any | None:
    """Return torch's CPU generator if something has imported torch; nothing here does."""
    return getattr(sys.modules.get("torch"), "default_generator", None)
