"""torch's generators beside Python's and NumPy's: seeded, captured, restored and set aside together."""

from __future__ import annotations

from typing import Any

import torch

from parhelion.generators import LoadedGenerators

__all__ = ["Randomness"]


class Randomness(LoadedGenerators):
    """The generators that a training step may draw from: the three on the host, and the device's where it is a GPU.

    Args:
        device: the device of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device if device.type == "cuda" else None

    def seed(self, seed: int) -> None:
        """Start every generator at the stream of ``seed``, a 64-bit integer."""
        super().seed(seed)
        if self._gpu is not None:
            with torch.cuda.device(self._gpu):
                torch.cuda.manual_seed(seed)

    def capture(self) -> dict[str, Any]:
        """Return the state of every generator as plain values and arrays."""
        state = super().capture() | {"torch": torch.default_generator.get_state().numpy()}
        if self._gpu is not None:
            state["cuda"] = torch.cuda.get_rng_state(self._gpu).numpy()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue every generator from a captured state; one that another backend or device lacks stays as it is."""
        super().restore(state)
        if "torch" in state:
            torch.default_generator.set_state(torch.tensor(state["torch"]))
        if self._gpu is not None and "cuda" in state:
            torch.cuda.set_rng_state(torch.tensor(state["cuda"]), self._gpu)
