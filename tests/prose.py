"""Counts of tell-tale words in the project's prose: how often it makes its reader work out what a sentence is about.

Prose is the Markdown files, and of Python files the docstrings, the comments and the texts for people (string
literals of three words or more). Run `python -m tests.prose` for a table of
all files, and `python -m tests.prose FILE...` for the lines with such words.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
TELL_TALES: Final = {
    "what": re.compile(r"\bwhat(ever)?\b", re.IGNORECASE),
    "who": re.compile(r"\b(who|whom|whose|whoever|whomever)\b", re.IGNORECASE),
    "anew": re.compile(r"\banew\b", re.IGNORECASE),
}
"""By group: words that often stand in the place of a name."""
_WORD: Final = re.compile(r"[A-Za-z][A-Za-z'’-]*")
_CODE: Final = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


class Line(NamedTuple):
    number: int
    text: str


def markdown(path: Path) -> Iterator[Line]:
    """The lines outside code."""
    text = _CODE.sub(lambda match: "\n" * match[0].count("\n"), path.read_text())
    yield from (Line(number, line) for number, line in enumerate(text.splitlines(), 1))


def python(path: Path) -> Iterator[Line]:
    source = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Line(token.start[0], token.string)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(_WORD.findall(node.value)) >= 3:
            text = _CODE.sub("", node.value)
            yield from (Line(node.lineno + number, line) for number, line in enumerate(text.splitlines()))


def lines_of(path: Path) -> list[Line]:
    return list(markdown(path) if path.suffix == ".md" else python(path))


def count(lines: list[Line]) -> Counter[str]:
    """How often each group of tell-tale words comes, and `words` in all."""
    found: Counter[str] = Counter()
    for line in lines:
        found["words"] += len(_WORD.findall(line.text))
        found.update({name: len(pattern.findall(line.text)) for name, pattern in TELL_TALES.items()})
    return found


def per_thousand(found: Counter[str]) -> dict[str, float]:
    return {name: 1000 * found[name] / max(found["words"], 1) for name in TELL_TALES}


def files() -> list[Path]:
    """All files with prose, in the order of their paths."""
    pages = ("*.md", "docs/*.md", "warren_raft/**/*.md", "examples/**/*.md")
    found = [path for pattern in pages for path in ROOT.glob(pattern)]
    for folder in ("warren_raft", "cli", "tests", "benchmarks", "examples"):
        found += (ROOT / folder).rglob("*.py")
    return sorted(path for path in found if path != Path(__file__))


def _table() -> None:
    for path in files():
        found = count(lines_of(path))
        rates = per_thousand(found)
        shown = "  ".join(f"{name} {rates[name]:5.1f}" for name in TELL_TALES)
        print(f"{found['words']:7}  {shown}  {path.relative_to(ROOT)}")


def _show(paths: list[str]) -> None:
    for path in map(Path, paths):
        for number, text in sorted(lines_of(path)):
            if any(pattern.search(text) for pattern in TELL_TALES.values()):
                print(f"{path}:{number}: {text.strip()}")


if __name__ == "__main__":
    _show(sys.argv[1:]) if len(sys.argv) > 1 else _table()
