"""The datasets that loaders are compared on, in a module that any kind of worker process can import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 64
# Shape, dtype, records in memory, and records of an epoch; all are multiples of the batch.
KINDS: dict[str, tuple[tuple[int, ...], Any, int, int]] = {
    "a": ((32,), np.float32, 1 << 19, 1 << 19),
    "b": ((3, 32, 32), np.uint8, 51_200, 51_200),
    "c": ((3, 224, 224), np.uint8, 1024, 16_384),
}
TITLES = {
    "a": "f32[32] with a label",
    "b": "u8[3,32,32] with a label",
    "c": "u8[3,224,224] with a label and 0.4 ms of NumPy's work",
}
BIG_ROWS, BIG_ROW = 64, 1 << 16  # f32: a batch of 16 MiB


class Columns:
    """Records ``{"x": row, "y": label}``, made of two arrays in memory; the first number of a row tells which it is."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, stored: int, size: int | None = None) -> None:
        self.x = np.empty((stored, *shape), dtype)
        self.x[:] = np.resize(np.arange(251), shape)
        self.x.reshape(stored, -1)[:, 0] = np.arange(stored) % 251
        self.y = np.arange(stored if size is None else size)

    @classmethod
    def of(cls, kind: str) -> Any:
        return cls(*KINDS[kind])

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Any:
        return {"x": self.x[index], "y": self.y[index]}


class TensorColumns(Columns):
    """The same records as torch's tensors, which most of its datasets return."""

    def __init__(self, *arguments: Any) -> None:
        import torch

        super().__init__(*arguments)
        self.x, self.y = torch.from_numpy(self.x), torch.from_numpy(self.y)  # type: ignore[assignment]


class WholeColumns(Columns):
    """Gathers the rows of a batch at once."""

    returns_batches = True

    def __getitems__(self, indices: Any) -> Any:
        return {"x": self.x[indices], "y": self.y[indices]}


class WholeTensors(TensorColumns):
    """Gathers them as tensors, which torch sends between processes without a pickle of their bytes."""

    def __getitems__(self, indices: Any) -> Any:
        return {"x": self.x[indices], "y": self.y[indices]}


def work(image: Any) -> None:
    """Stand for decoding and augmenting: 0.4 ms for 3 x 224 x 224, the interpreter's lock released."""
    values = np.multiply(image, np.float32(1 / 255))
    for _ in range(12):
        np.tanh(values, out=values)


class Repeated(Columns):
    """Has fewer rows in memory than records."""

    def __getitem__(self, index: int) -> Any:
        return {"x": self.x[index % len(self.x)], "y": self.y[index]}


class Images(Repeated):
    """Works on an image before it returns it."""

    def __getitem__(self, index: int) -> Any:
        record = super().__getitem__(index)
        work(record["x"])
        return record


class TensorImages(TensorColumns):
    def __getitem__(self, index: int) -> Any:
        record = {"x": self.x[index % len(self.x)], "y": self.y[index]}
        work(record["x"].numpy())
        return record


class Filled:
    """Batches of 16 MiB that cost no more than to fill fresh memory."""

    returns_batches = True

    def __len__(self) -> int:
        return BIG_ROWS << 12

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return {"x": np.full((BIG_ROWS, BIG_ROW), indices[0] % 251, np.float32), "y": np.array(indices)}


class FilledInPlace(Filled):
    """The same, in the memory that a loader's worker shares with its parent."""

    def __getitems__(self, indices: Sequence[int]) -> Any:
        from parhelion.data import empty

        x = empty((BIG_ROWS, BIG_ROW), np.float32)
        x[:] = indices[0] % 251
        return {"x": x, "y": np.array(indices)}


class FilledTensors(Filled):
    def __getitems__(self, indices: Sequence[int]) -> Any:
        import torch

        return {name: torch.from_numpy(array) for name, array in super().__getitems__(indices).items()}


class Virtual:
    """As many records as one likes, each computed from its index."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return {"x": np.full(32, index % 251, np.float32), "y": index}

    def __repr__(self) -> str:
        return f"Virtual({self.size})"


class Counted(Virtual):
    """Counts the calls of ``__getitem__`` in all processes: each adds the index to a file."""

    def __init__(self, size: int, path: Path) -> None:
        super().__init__(size)
        self.path = path
        path.touch()

    def __getitem__(self, index: int) -> Any:
        with self.path.open("ab", buffering=0) as file:
            file.write(int(index).to_bytes(8, "little"))
        return super().__getitem__(index)

    def calls(self) -> Any:
        """Return the indices that were asked for, as int64."""
        return np.fromfile(self.path, np.int64)
