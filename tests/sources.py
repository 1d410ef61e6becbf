"""Python sources as tests look at them: parsed only if their text has a word that the test looks for.

Parsing a module and walking over it takes a hundred times as long as a search in its text.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path


def trees_with(pattern: str, paths: Iterable[Path]) -> Iterator[tuple[Path, ast.Module]]:
    """The modules whose text matches the regular expression `pattern`, parsed, in the order of `paths`. Raises
    SyntaxError. To Python, a name in full-width letters is the same as in usual ones, so it is to the search."""
    search = re.compile(pattern).search
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if search(unicodedata.normalize("NFKC", text)):
            yield path, ast.parse(text, str(path))
