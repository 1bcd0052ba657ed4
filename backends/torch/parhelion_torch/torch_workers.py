"""torch's own loader, made to begin anywhere: what a loader runs on with ``worker_type="torch"``.

Its batch sampler yields requests, so that the place of every sample comes to the worker with its index.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from parhelion.data import Fetch, count_batches
from parhelion.sampling import FetchRequest, ResumableSamplerType
from parhelion.seeds import derive

__all__ = ["TorchEngine"]


class TorchEngine:
    """Batches that torch's loader makes, from the sampler's position to the end of its epoch.

    Args:
        fetch: makes a batch of a request.
        sampler: says what is fetched.
        seed: keys the seeds of workers, with the position.
        options: torch's arguments that concern how it works.
    """

    def __init__(self, fetch: Fetch, sampler: ResumableSamplerType, seed: int, options: dict[str, Any]) -> None:
        self._sampler, self._seed = sampler, seed
        # A generator of its own: torch would draw the workers' seeds from the one that training draws from.
        self._generator = torch.Generator()
        if options["num_workers"] and options.get("multiprocessing_context") is None and _is_jax_running():
            options = options | {"multiprocessing_context": _safe_context()}
        requests: Any = _Requests(sampler)
        self._loader: DataLoader[Any] = DataLoader(
            _RequestedDataset(fetch),
            batch_sampler=requests,
            collate_fn=_get_whole,
            generator=self._generator,
            **options,
        )

    def __iter__(self) -> Iterator[Any]:
        position = self._sampler.position
        self._generator.manual_seed(derive(self._seed, "workers", position.epoch, position.offset))
        return _raise_failures(iter(self._loader))


class _Requests(Sampler[FetchRequest]):
    def __init__(self, sampler: ResumableSamplerType) -> None:
        self._sampler = sampler

    def __iter__(self) -> Iterator[FetchRequest]:
        return (request for request in self._sampler.requests() if len(request.indices))

    def __len__(self) -> int:
        return count_batches(self._sampler)


class _RequestedDataset(Dataset[Any]):
    """The user's dataset, asked by request; all else about it shows through, also to ``worker_init_fn``."""

    _fetch: Fetch

    def __init__(self, fetch: Fetch) -> None:
        object.__setattr__(self, "_fetch", fetch)

    def __getitems__(self, request: FetchRequest) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self._fetch(request)
        try:
            return self._fetch(request, in_worker=True)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
            return _Failure.of(error, worker.id)

    def __getitem__(self, index: int) -> Any:
        return self._fetch.dataset[index]

    def __len__(self) -> int:
        return len(self._fetch.dataset)

    def __getattr__(self, name: str) -> Any:
        # Without the check, unpickling would look for the fetch in the fetch.
        if name.startswith("__") or name == "_fetch":
            raise AttributeError(name)
        return getattr(self._fetch.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._fetch.dataset, name, value)


@attrs.frozen
class _Failure:
    """What a worker sends in place of a batch when it has none.

    torch's own raises an exception that refers to itself, and so to the iterator. That must not be left to
    the garbage collector: it finalizes the queues first, the workers never hear that they should end, and
    each is waited for five seconds.
    """

    kind: type[Exception]
    message: str

    @classmethod
    def of(cls, error: Exception, worker: int) -> _Failure:
        trace = "".join(traceback.format_exception(error))
        message = f"{error}\n\nIt was raised in worker process {worker}:\n{trace}"
        try:
            kind = pickle.loads(pickle.dumps(type(error)))  # noqa: S301 - our own bytes
            kind(message)
        except Exception:  # noqa: BLE001 - a type of any making
            return cls(RuntimeError, message)
        return cls(kind, message)


def _raise_failures(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if type(batch) is _Failure:
            # The traceback will hold what this frame holds, and the iterator should end now.
            del batches
            raise batch.kind(batch.message)
        yield batch


def _get_whole(batch: Any) -> Any:
    return batch


def _is_jax_running() -> bool:
    """Return whether jax has started its threads in this process, told without importing it."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bool(bridge.backends_are_initialized())


def _safe_context() -> Any:
    """Return a way to start workers beside jax: a fork of a process with threads may wait for ever for one of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])  # or each worker would take most of a second to import it
    return context
