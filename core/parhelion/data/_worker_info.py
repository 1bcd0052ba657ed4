"""What code in a worker process may ask about it."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["tell_torch"]


def tell_torch(number: int, num_workers: int, fetch: Any) -> None:
    """Let torch, if it is loaded, know that this is a worker process; nothing here loads it.

    Datasets and functions that were written for torch's loader ask ``torch.utils.data.get_worker_info()``. As there,
    each worker computes with one thread: there are others to share the processors with.
    """
    torch: Any = sys.modules.get("torch")
    worker: Any = getattr(getattr(getattr(torch, "utils", None), "data", None), "_utils", None)
    if worker is not None:
        torch.set_num_threads(1)
        info = {"id": number, "num_workers": num_workers, "seed": 0, "dataset": getattr(fetch, "dataset", None)}
        worker.worker._worker_info = worker.worker.WorkerInfo(**info)  # noqa: SLF001 - there is no public way
