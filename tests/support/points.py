"""Records for jax's runs, in a file that imports no framework: worker processes start ten times as fast."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

import parhelion as ph


class Points:
    """Points of three classes; each is moved by the sample's own generator and by the two global ones."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        point = np.sin(np.arange(6, dtype=np.float32) * (index + 1))
        point += 0.1 * ph.sample_rng().standard_normal(6, np.float32)
        point += np.float32(0.1 * random.random() + 0.1 * np.random.rand())
        return {"x": point, "label": index % 3, "index": index}
