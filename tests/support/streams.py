"""Streams that tests read, also in worker processes, and ways to read them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import parhelion as ph
from parhelion.checkpoint import flatten, unflatten
from parhelion.data import DataLoaderParams, DatasetSplit, Lane, Stream, create_stream_loader
from parhelion.sampling import Position


class Ranges(Stream):
    """Lanes of given sizes; record k of lane l is ``{"id": 1000 l + k}``."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    @property
    def num_lanes(self) -> int:
        return len(self.sizes)

    @property
    def name(self) -> str:
        return f"Ranges{self.sizes}"

    def open(self, lane: Lane) -> Any:
        return Counter(self.sizes[lane.number], 1000 * lane.number)


class Counter:
    def __init__(self, size: int, first: int = 0) -> None:
        self.size, self.first, self.next = size, first, 0

    def __iter__(self) -> Counter:
        return self

    def __next__(self) -> Any:
        if self.next == self.size:
            raise StopIteration
        self.next += 1
        return {"id": self.first + self.next - 1}

    def state_dict(self) -> Any:
        return {"next": self.next}

    def load_state_dict(self, state: Any) -> None:
        self.next = state["next"]


def add_noise(record: Any) -> Any:
    """Draw from every generator that a core's user may draw from."""
    return {**record, "noise": ph.sample_rng().random(), "legacy": np.random.rand()}


def is_wanted(record: Any) -> bool:
    return bool(record["id"] % 5 != 3)


class Pairs:
    """Each record with the one behind it, and the last one with itself; its state is the very list that it changes."""

    def __init__(self, records: Iterator[Any]) -> None:
        self.records = records
        self.kept: list[Any] = []

    def __iter__(self) -> Pairs:
        return self

    def __next__(self) -> Any:
        while len(self.kept) < 2:
            record = next(self.records, None)
            if record is None:
                break
            self.kept.append(record)
        if not self.kept:
            raise StopIteration
        pair = {"id": self.kept[0]["id"], "other": self.kept[-1]["id"], "draw": ph.sample_rng().random()}
        del self.kept[:1]
        return pair

    def state_dict(self) -> Any:
        return {"kept": self.kept}

    def load_state_dict(self, state: Any) -> None:
        self.kept = state["kept"]


def make(stream: Any, split: DatasetSplit = DatasetSplit.TRAIN, rank: int = 0, world: int = 1, **params: Any) -> Any:
    params = {"batch_size": 4, "is_distributed": world > 1, **params}
    return create_stream_loader(stream, split, DataLoaderParams(**params), rank=rank, world=world)


def plain(batch: Any) -> Any:
    """Return a batch as what ``==`` compares, bit for bit."""
    if isinstance(batch, dict):
        return {name: plain(value) for name, value in batch.items()}
    return [batch.dtype.str, batch.tolist()] if isinstance(batch, np.ndarray) else batch


def through_checkpoint(entry: Any) -> Any:
    """Return a state as a checkpoint gives it back."""
    skeleton, arrays = flatten(entry)
    return unflatten(json.loads(json.dumps(skeleton)), arrays)


def deliveries(loader: Any, position: Position | None = None, entry: Any = None) -> list[Any]:
    """Return an epoch's batches, their records and the states behind them."""
    loader.cursor.seek(position or Position(), entry)
    return [(plain(each.batch), each.num_records, through_checkpoint(each.entry)) for each in loader.open_pass()]


def batches(loader: Any, position: Position | None = None, entry: Any = None) -> list[Any]:
    return [batch for batch, _, _ in deliveries(loader, position, entry)]


def ids(found: list[Any]) -> list[int]:
    return [number for batch in found for number in batch["id"][1]]


def write_tar(path: Path, records: list[dict[str, bytes]], *, format: int = tarfile.PAX_FORMAT) -> Path:  # noqa: A002
    """Write records, each a dict of file endings and a ``__key__``."""
    mode: Any = {".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode, format=format) as tar:
        for record in records:
            for ending, content in record.items():
                if ending != "__key__":
                    info = tarfile.TarInfo(f"{record['__key__']}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return path


def numbered(count: int, first: int = 0) -> list[dict[str, bytes]]:
    """Return records of a tar shard: a number as JSON, and bytes of a length that differs."""
    return [
        {"__key__": f"r{k:05d}", "json": json.dumps({"id": k}).encode(), "bin": bytes([k % 251]) * (37 * (k % 40))}
        for k in range(first, first + count)
    ]
