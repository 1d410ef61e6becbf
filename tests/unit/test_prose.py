"""The prose of the project is plain: words that stand in the place of a name are as rare as in comparable projects.

"What …", "who …" and "whoever …" make a reader work out the subject of a sentence. Eight projects whose prose is easy
to read have 0 to 1.3 and 0 to 0.7 of them in 1,000 words. `python -m tests.prose` shows where ours are.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.prose import ROOT, count, files, lines_of, per_thousand

WHAT_MAX = 1.3
WHO_MAX = 0.7
PARTS = {
    "documents": lambda path: path.suffix == ".md",
    "the package": lambda path: path.suffix == ".py" and path.parts[0] == "warren_raft",
    "the command line": lambda path: path.parts[0] == "cli",
}


@pytest.mark.parametrize("part", PARTS)
def test_prose_names_things(part: str) -> None:
    found: Counter[str] = Counter()
    for path in files():
        if PARTS[part](path.relative_to(ROOT)):
            found += count(lines_of(path))
    rates = per_thousand(found)
    assert found["words"] > 1000
    assert rates["what"] <= WHAT_MAX, rates
    assert rates["who"] <= WHO_MAX, rates
    assert found["anew"] == 0


def test_the_count_sees_docstrings_comments_and_messages(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text('"""What it does."""\n# who asked\nraise ValueError("it was built anew, whoever asked")\n')
    assert count(lines_of(program)) == {"words": 11, "what": 1, "who": 2, "anew": 1}
    page = tmp_path / "page.md"
    page.write_text("Text `what` text.\n```\nwhat\n```\nWhat?\n")
    assert count(lines_of(page)) == {"words": 3, "what": 1, "who": 0, "anew": 0}
