"""The code of docs/samplers.md does what it says; every sampler is in it; its pictures are drawn from the samplers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from parhelion.sampling import SAMPLER_REGISTRY

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "samplers.md"
SCRIPT = ROOT / "examples" / "samplers" / "pictures.py"
MAX_BYTES = 60_000


def test_the_code_runs_from_top_to_bottom(monkeypatch) -> None:
    # The registry is the whole process's: what is registered here goes when the test does.
    monkeypatch.setattr(SAMPLER_REGISTRY, "_entries", dict(SAMPLER_REGISTRY._entries))
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(blocks) == 10
    namespace: dict[str, Any] = {"__name__": "document"}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), namespace)  # noqa: S102 - our own document


def test_every_sampler_is_in_the_table_and_has_an_example() -> None:
    text = DOCUMENT.read_text()
    names = [name for name in SAMPLER_REGISTRY.names() if name.startswith("Resumable")]
    assert [name for name in names if f"| `{name}` |" not in text] == []
    assert [name for name in names if text.count(name) < 2] == []


def test_every_picture_is_shown_and_small() -> None:
    shown = re.findall(r"\(images/(sampler-[\w-]+\.png)\)", DOCUMENT.read_text())
    there = {path.name: path.stat().st_size for path in (ROOT / "docs" / "images").glob("sampler-*.png")}
    assert sorted(shown) == sorted(there)
    assert max(there.values()) < MAX_BYTES


def test_the_script_draws_every_picture(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("pictures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    shown = set(re.findall(r"\(images/(sampler-[\w-]+\.png)\)", DOCUMENT.read_text()))
    assert set(pictures.DRAWINGS) == shown
    name = "sampler-curriculum.png"
    pictures.DRAWINGS = {name: pictures.DRAWINGS[name]}
    pictures.main(tmp_path)
    assert (tmp_path / name).stat().st_size > 1000
