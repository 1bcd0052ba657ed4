"""torch's experiment with its training records as a stream: killed and started again as that one is."""

from __future__ import annotations

from typing import Any

from parhelion.data import DataLoaderParams, DatasetSplit, MapStream, create_stream_loader
from parhelion_torch.data import collate
from support import torch_case
from support.torch_case import BATCH_SIZE, adapter, make_model, make_trainer, weights

__all__ = ["Data", "Points", "adapter", "make_model", "make_trainer", "weights"]

Points = torch_case.Points


class Data(torch_case.Data):
    def train_dataloader(self) -> Any:
        params = DataLoaderParams(batch_size=BATCH_SIZE, shuffle=True, num_workers=self.workers)
        return create_stream_loader(
            MapStream(Points(), num_lanes=4).shuffle(5),
            DatasetSplit.TRAIN,
            params,
            default_collate=collate,
        )
