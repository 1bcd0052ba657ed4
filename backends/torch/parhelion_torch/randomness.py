"""torch's generators beside Python's and NumPy's: seeded, captured, restored and set aside together."""

from __future__ import annotations

from typing import Any

import torch

from parhelion.seeds import PythonGenerators

__all__ = ["Randomness", "TorchGenerators"]


class TorchGenerators(PythonGenerators):
    """Python's ``random``, NumPy's legacy generator and torch's CPU generator."""

    def seed(self, seed: int) -> None:
        """Start all three at the stream of ``seed``, a 64-bit integer."""
        super().seed(seed)
        # torch.manual_seed takes eighty times as long, for it also looks for devices.
        torch.default_generator.manual_seed(seed)

    def capture(self) -> dict[str, Any]:
        """Return the three states as plain values and arrays."""
        return {**super().capture(), "torch": torch.default_generator.get_state().numpy()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue all three from a captured state; one of another backend leaves torch's stream as it is."""
        super().restore(state)
        if "torch" in state:
            torch.default_generator.set_state(torch.tensor(state["torch"]))

    def set_aside(self) -> Any:
        """Return what :meth:`put_back` needs to bring the three streams back."""
        return super().set_aside(), torch.default_generator.get_state()

    def put_back(self, aside: Any) -> None:
        """Bring the three streams back, where they were."""
        python, own = aside
        super().put_back(python)
        torch.default_generator.set_state(own)


class Randomness(TorchGenerators):
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
        state = super().capture()
        if self._gpu is not None:
            state["cuda"] = torch.cuda.get_rng_state(self._gpu).numpy()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue every generator from a captured state; one of another device kind leaves the GPU's as it is."""
        super().restore(state)
        if self._gpu is not None and "cuda" in state:
            torch.cuda.set_rng_state(torch.tensor(state["cuda"]), self._gpu)
