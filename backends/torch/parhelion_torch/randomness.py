"""torch's generators beside Python's and NumPy's: seeded, captured, restored and set aside together."""

from __future__ import annotations

from typing import Any

import torch

from parhelion.seeds import PythonGenerators

__all__ = ["TorchGenerators"]


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
        """Continue all three from what :meth:`capture` returned."""
        super().restore(state)
        torch.default_generator.set_state(torch.from_numpy(state["torch"].copy()))

    def set_aside(self) -> Any:
        """Return what :meth:`put_back` needs to bring the three streams back."""
        return super().set_aside(), torch.default_generator.get_state()

    def put_back(self, aside: Any) -> None:
        """Bring the three streams back, where they were."""
        python, own = aside
        super().put_back(python)
        torch.default_generator.set_state(own)
