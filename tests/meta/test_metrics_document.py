"""The code of docs/metrics.md does what it says, and every metric is in it."""

from __future__ import annotations

import re
from pathlib import Path

from parhelion.training._metrics import METRIC_REGISTRY

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_code_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    exec(compile(block, str(DOCUMENT), "exec"), {})  # noqa: S102 - our own document


def test_every_metric_is_in_the_table() -> None:
    table = "".join(line for line in DOCUMENT.read_text().splitlines() if line.startswith("|"))
    assert [name for name in METRIC_REGISTRY.names() if f"`{name}(" not in table] == []
