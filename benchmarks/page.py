"""The documentation's page of figures, made of what the programs wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from machine import in_a_line

__all__ = ["write_page"]

_INTRODUCTION = """\
# Benchmarks

<!-- Made by benchmarks/all.py; changes here are lost. -->

Medians with quartiles of what was measured in one run, in turns. "x raw" is how many times as fast
as the standard library's pool; a goal is followed by whether it was met. What exactly is timed is
said in `benchmarks/README.md`; `python benchmarks/all.py` runs everything again and makes this
page.
"""

_TITLES = {
    "compare": "Beside other pools",
    "large": "Beside other pools: 1 GB",
    "store": "Beside memory",
    "memory": "Peak memory",
    "growth": "Growth",
    "load": "Load",
    "dask": "Dask: moving data, and tiny tasks",
    "dask_text": "Dask: a map-reduce over text",
    "dask_factorize": "Dask: a blocked factorization",
    "redis": "Redis",
    "tuning": "Policies",
    "asyncio": "asyncio",
}


def write_page(docs: Path, names: Sequence[str]) -> None:
    """Write benchmarks.md from the JSON files in the directory beside it.

    Args:
        docs: the directory of the page.
        names: of the files, without ending, in the order of the page; missing ones are passed over.
    """
    parts = [_INTRODUCTION]
    for name in names:
        source = docs / "benchmarks" / f"{name}.json"
        if source.exists():
            parts += _part(name, json.loads(source.read_text()), source.with_suffix(".png"))
    (docs / "benchmarks.md").write_text("\n".join(parts))


def _part(name: str, document: dict[str, Any], picture: Path) -> Iterator[str]:
    yield f"## {_TITLES.get(name, name)}\n"
    workers = f"{document['workers']} workers" if "workers" in document else ""
    yield f"{in_a_line(document['machine'], *filter(None, [workers]))}. {document['made'][:10]}.\n"
    if picture.exists():
        yield f"![{_TITLES.get(name, name)}](benchmarks/{picture.name})\n"
    for table in document.get("tables", []):
        yield from _table(table)


def _table(table: dict[str, Any]) -> Iterator[str]:
    title = table["title"]
    yield f"### {title[:1].upper()}{title[1:]}\n"
    rule = ["---", *["--:"] * (len(table["columns"]) - 1)]
    yield "\n".join(_line(cells) for cells in (table["columns"], rule, *table["rows"])) + "\n"
    for note in table.get("notes", []):
        yield f"{_plain(note)}\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_plain, cells)) + " |"


def _plain(text: str) -> str:
    # Errors say anything: no line ends, no markup.
    text = " ".join(text.split())
    for character in "\\|<>*_`[]":
        text = text.replace(character, "\\" + character)
    return text
