"""What the documents point at is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(document) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (document.parent / link).exists()]
    paths = re.findall(r"\b(?:core|backends|tests|docs|examples)/[\w./-]*\w", text)
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_the_tour_uses_real_names() -> None:
    text = (ROOT / "docs" / "tour.md").read_text()
    sources = [path.read_text() for folder in ("core", "backends") for path in (ROOT / folder).rglob("*.py")]
    defined = {
        node.name
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    }
    attributes = {word for source in sources for word in re.findall(r"\b\w+\b", source)}
    named = {part for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\(.*?\))?`", text) for part in name.split(".")}
    assert {name for name in named if name[0].isupper()} - defined - {"True", "False", "DataLoader"} == set()
    assert named - attributes == set()
