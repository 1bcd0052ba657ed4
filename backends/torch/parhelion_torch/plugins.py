"""Plugins that need torch."""

from __future__ import annotations

from typing import Any

import torch

from parhelion.plugins import PLUGIN_REGISTRY, BatchMover

from .placement import move

__all__ = ["CUDAPlugin"]


@PLUGIN_REGISTRY.register
class CUDAPlugin(BatchMover):
    """Moves batches to the GPU before the model's steps.

    The trainer places nested batches by itself; this plugin is for batches of your own types: derive from it and
    override :meth:`_move_collection_to_device`. What is on the device already is not copied again.

    Raises:
        RuntimeError: CUDA is not available.
    """

    plugin_id = "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError(
                "CUDAPlugin needs CUDA and torch finds none; expected a CUDA build of torch and a visible GPU. "
                "Without the plugin the trainer places batches on whatever device it runs on."
            )
        super().__init__(self.plugin_id)

    def _move_collection_to_device(self, batch: Any) -> Any:
        """Return a batch on the GPU, or change it in place and return None; override it for types of your own."""
        return move(batch, self.device)
