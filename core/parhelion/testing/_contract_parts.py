"""What every backend's placement, randomness and world do, as test classes to derive from."""

from __future__ import annotations

import copy
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import numpy as np

from parhelion.errors import InvalidTypeError
from parhelion.training import Placement, Randomness, World

from ._claims import claim, claim_raises
from ._compare import first_difference

__all__ = ["PlacementContract", "RandomnessContract", "WorldContract"]

# Without narrowing: what is inside of something that is Any is Any.
_is: Callable[[Any, Any], bool] = isinstance


@attrs.frozen
class _Record:
    """A batch of a kind of its own."""

    x: Any
    name: str


class PlacementContract(ABC):
    """What a placement does with batches and values. Derive a ``TestPlacement`` and give the ``make_`` methods."""

    @abstractmethod
    def make_placement(self) -> Placement:
        """Return the placement to be tested."""

    @abstractmethod
    def make_scalar(self, number: float) -> Any:
        """Return a scalar as a training step of this framework returns one: an array on the device."""

    def read(self, array: Any) -> Any:
        """Return the NumPy array of a placed one."""
        return np.asarray(array)

    def make_batch(self, size: int = 8) -> dict[str, Any]:
        """Return a host batch of ``size`` records as the core's loader makes it."""
        rng = np.random.Generator(np.random.PCG64(1))
        return {
            "x": rng.standard_normal((size, 3), np.float32),
            "label": np.arange(size, dtype=np.int64) - 2,
            "image": rng.integers(0, 256, (size, 2, 2), np.uint8),
            "mask": rng.random(size) < 0.5,
            "name": [f"record {number}" for number in range(size)],
            "nothing": None,
            "pair": (rng.standard_normal(size, np.float32), {"deep": rng.standard_normal((size, 1), np.float32)}),
        }

    def test_place_keeps_every_field_and_every_value(self) -> None:
        """Nothing is lost, reordered or rounded on the way, however deep it lies."""
        batch = self.make_batch()
        self._compare(batch, self.make_placement().place(batch), "batch")

    def test_a_placed_batch_may_be_placed_again(self) -> None:
        """What is on the device already stays as it is."""
        placement, batch = self.make_placement(), self.make_batch()
        self._compare(batch, placement.place(placement.place(batch)), "batch, placed twice")

    def test_place_leaves_the_host_batch_as_it_was(self) -> None:
        """The loader's batch may be used again."""
        batch = self.make_batch()
        before = copy.deepcopy(batch)
        self.make_placement().place(batch)
        difference = first_difference(before, batch, "the host batch, after place,")
        claim(difference is None, str(difference))

    def test_a_shared_batch_may_have_any_number_of_records(self) -> None:
        """The incomplete last batch of an evaluation is given with ``shared=True``, down to one record."""
        for size in (5, 1):
            batch = self.make_batch(size)
            self._compare(batch, self.make_placement().place(batch, shared=True), f"shared batch of {size}")

    def test_a_record_of_a_kind_of_its_own_keeps_its_kind(self) -> None:
        """An attrs record comes back as one, with what is in it placed."""
        record = _Record(np.arange(8, dtype=np.float32), "text")
        placed = self.make_placement().place({"record": record})["record"]
        claim(type(placed) is _Record, f"a record should stay a _Record when it is placed and became {placed!r}")
        self._compare({"x": record.x, "name": record.name}, {"x": placed.x, "name": placed.name}, "record")

    def test_values_come_back_in_their_order(self) -> None:
        """``to_host`` returns the n-th float for the n-th held value, whatever kinds they are of."""
        placement, expected = self.make_placement(), [0.5 * number for number in range(1500)]
        kinds: tuple[Callable[[float], Any], ...] = (float, self.make_scalar, np.float32, self.make_scalar, np.float64)
        held = [placement.hold(kinds[place % len(kinds)](number)) for place, number in enumerate(expected)]
        found = placement.to_host(held)
        claim(len(found) == len(expected), f"to_host of {len(expected)} values should return as many, not {len(found)}")
        wrong = [place for place, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]]
        first = wrong[0] if wrong else 0
        claim(
            not wrong,
            f"to_host should return values in their order: value {first} should be {expected[first]} and is "
            f"{found[first]}",
        )
        claim(all(type(each) is float for each in found), "to_host should return Python floats only")

    def test_what_is_not_finite_comes_back_as_it_is(self) -> None:
        """The guard against such losses sees them."""
        placement = self.make_placement()
        values = [self.make_scalar(math.inf), math.nan, self.make_scalar(-math.inf), self.make_scalar(math.nan)]
        found = placement.to_host([placement.hold(value) for value in values])
        claim(str(found) == "[inf, nan, -inf, nan]", f"[inf, nan, -inf, nan] should come back and {found} did")

    def test_nothing_comes_back_for_nothing(self) -> None:
        """A print without values is none of the placement's business."""
        claim(self.make_placement().to_host([]) == [], "to_host([]) should return []")

    def test_what_is_no_scalar_is_refused(self) -> None:
        """``hold`` raises InvalidTypeError at once, where the step that gave it is still known."""
        placement = self.make_placement()
        for value in ("0.5", None, np.zeros((2, 3), np.float32), [1.0, 2.0]):
            claim_raises(InvalidTypeError, partial(placement.hold, value), f"hold({value!r})")

    def _compare(self, expected: Any, found: Any, path: str) -> None:
        if _is(expected, np.ndarray):
            self._compare_arrays(expected, self.read(found), path)
        elif _is(expected, dict):
            for key in {**expected, **found}:
                claim(key in found, f"place lost {path}[{key!r}]; expected every field of the host batch")
                claim(key in expected, f"place added {path}[{key!r}]; expected the fields of the host batch only")
                self._compare(expected[key], found[key], f"{path}[{key!r}]")
        elif _is(expected, tuple):
            claim(
                type(found) is type(expected) and len(found) == len(expected),
                f"{path} should stay a tuple of {len(expected)} when it is placed and became {found!r:.80}",
            )
            for place, pair in enumerate(zip(expected, found, strict=True)):
                self._compare(*pair, f"{path}[{place}]")
        else:
            claim(found == expected, f"{path} should stay {expected!r} when it is placed and became {found!r}")

    def _compare_arrays(self, expected: Any, found: Any, path: str) -> None:
        # A framework may narrow 64 bits; it may not turn a number into another one.
        claim(
            found.shape == expected.shape and found.dtype.kind == expected.dtype.kind,
            f"{path} should stay {expected.dtype}{list(expected.shape)} when it is placed and became "
            f"{found.dtype}{list(found.shape)}",
        )
        wrong = np.flatnonzero((found != expected).reshape(-1))
        place = int(wrong[0]) if wrong.size else 0
        claim(
            not wrong.size,
            f"place changed {len(wrong)} of the {expected.size} values of {path}: the first, {place}, should be "
            f"{expected.reshape(-1)[place]!r} and is {found.reshape(-1)[place]!r}",
        )


class RandomnessContract(ABC):
    """What a backend does with the process-wide generators. Derive a ``TestRandomness`` and give what is asked for."""

    @abstractmethod
    def make_randomness(self) -> Randomness:
        """Return the randomness to be tested."""

    def draw(self) -> list[float]:
        """Return a number from each process-wide generator that a step may draw from.

        Add those of the framework: ``[*super().draw(), float(torch.rand(()))]``.
        """
        return [random.random(), float(np.random.rand()), float(np.random.standard_normal())]  # noqa: NPY002

    def test_a_seed_says_everything_that_is_drawn(self) -> None:
        """One seed gives one stream, another seed another one, from 0 to the largest."""
        randomness, drawn = self.make_randomness(), dict[int, list[float]]()
        # They differ in their low halves too, which is all that some generators take (torch's on the CPU).
        for seed in (0, 1, 2**40 + 2, 2**64 - 1) * 2:
            randomness.seed(seed)
            numbers = self.draw()
            self._claim_same(drawn.setdefault(seed, numbers), numbers, f"after seed({seed}) for the second time")
        for place in range(len(drawn[0])):
            numbers = [each[place] for each in drawn.values()]
            claim(
                len({*numbers}) == len(numbers),
                f"other seeds should give other numbers; {self._name(place)} has {numbers}",
            )

    def test_what_was_captured_is_restored(self) -> None:
        """Every generator goes on where it was; the captured state stays good for a second time."""
        randomness = self.make_randomness()
        randomness.seed(3)
        self.draw()
        state = randomness.capture()
        expected = [self.draw() for _ in range(3)]
        for attempt in ("", ", for the second time"):
            randomness.seed(4)
            self.draw()
            randomness.restore(state)
            for numbers in expected:
                self._claim_same(numbers, self.draw(), f"after restore{attempt}")

    def test_capturing_moves_nothing(self) -> None:
        """A checkpoint leaves the run as it is."""
        randomness = self.make_randomness()
        randomness.seed(5)
        expected = self.draw()
        randomness.seed(5)
        randomness.capture()
        self._claim_same(expected, self.draw(), "after capture")

    def test_what_happens_aside_moves_nothing(self) -> None:
        """Also when it seeds anew, and when it fails."""
        randomness = self.make_randomness()
        randomness.seed(6)
        expected = self.draw()
        for fails in (False, True):
            randomness.seed(6)
            try:
                with randomness.aside():
                    self.draw()
                    randomness.seed(7)
                    self.draw()
                    if fails:
                        raise LookupError  # noqa: TRY301 - the failure that the context must survive
            except LookupError:
                pass
            self._claim_same(expected, self.draw(), f"after aside(){', which failed' if fails else ''}")

    def _claim_same(self, expected: list[float], found: list[float], when: str) -> None:
        wrong = [place for place, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]]
        if wrong:
            place = wrong[0]
            claim(
                fact=False,
                message=f"{when}, {self._name(place)} should give {expected[place]} and gives {found[place]}",
            )

    def _name(self, place: int) -> str:
        own = ("Python's generator", "NumPy's generator", "NumPy's generator (normal)")
        return own[place] if place < len(own) else f"generator {place} of draw()"


class WorldContract(ABC):
    """What a world says. Derive a ``TestWorld`` and give ``make_world``; it is asked in one process."""

    @abstractmethod
    def make_world(self) -> World:
        """Return the world to be tested."""

    def test_ranks_count_from_zero(self) -> None:
        """The rank is below the size, and the local one no larger than the rank."""
        world = self.make_world()
        numbers = {"rank": world.rank, "local_rank": world.local_rank, "size": world.size}
        claim(all(type(each) is int for each in numbers.values()), f"a world should have integers and has {numbers}")
        claim(
            0 <= world.local_rank <= world.rank < world.size,
            f"0 <= local_rank <= rank < size should hold and a world has {numbers}",
        )

    def test_one_process_waits_for_nobody(self) -> None:
        """A barrier is passed by whoever is alone."""
        self.make_world().barrier()

    def test_gather_returns_what_every_rank_gave(self) -> None:
        """By rank; this process's own among them."""
        world, value = self.make_world(), {"numbers": [1, 2.5], "text": "x"}
        found = world.gather(value)
        claim(len(found) == world.size, f"gather should return {world.size} values, one per rank, and returned {found}")
        claim(
            found[world.rank] == value, f"gather should return {value} for this rank and returned {found[world.rank]}"
        )

    def test_gather_to_first_gives_the_first_rank_what_gather_would(self) -> None:
        """The others get an empty list."""
        world, value = self.make_world(), {"numbers": [1, 2.5], "text": "x"}
        found = world.gather_to_first(value)
        expected = world.size if world.rank == 0 else 0
        claim(
            len(found) == expected,
            f"gather_to_first should return {expected} values in rank {world.rank} and returned {len(found)}",
        )
        claim(
            expected == 0 or found[0] == value,
            f"gather_to_first should return {value} for this rank and returned {found[:1]}",
        )

    def test_a_wish_is_heard_in_front_of_a_later_unit_and_once(self) -> None:
        """Alone, a process hears in front of the next unit what it wished for, in its order; others hear it soon."""
        world, heard = self.make_world(), list[str]()
        first = world.meeting.enter()
        claim(first == (), f"enter should return () where nobody has wished for anything and returned {first}")
        for wish in ("save", "stop", "save"):
            world.meeting.ask(wish)
        deadline = time.monotonic() + 20
        while len(heard) < 2 and time.monotonic() < deadline:
            heard += world.meeting.enter()
        heard += world.meeting.enter()
        claim(
            heard == ["save", "stop"], f"wishes for save, stop, save should be heard as save, stop and were as {heard}"
        )
