"""The promise: each page of the documentation has a place on the site, and the site has no place for other pages.

Building the site (scripts/docs.sh) checks the same and all links, but needs packages that these tests do without.
"""

from __future__ import annotations

import ast
import re

import warren_raft
from tests.prose import ROOT, files

CONF = ROOT / "docs/site/conf.py"


def families() -> dict[str, tuple[str, ...]]:
    """The pages in the order of the site, by family."""
    for node in ast.parse(CONF.read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "FAMILIES":
            assert node.value is not None
            found: dict[str, tuple[str, ...]] = ast.literal_eval(node.value)
            return found
    raise AssertionError(f"{CONF} has no FAMILIES")


def test_each_page_is_in_one_family_of_the_site() -> None:
    """If this fails for a new page: add it to FAMILIES of docs/site/conf.py."""
    placed = [page.rpartition("<")[2].rstrip(">") + ".md" for pages in families().values() for page in pages]
    pages = {str(path.relative_to(ROOT)) for path in files() if path.suffix == ".md"}
    assert sorted(["README.md", *placed]) == sorted(pages)


def test_each_public_name_is_in_the_python_reference_once() -> None:
    """Its docstring comes with it: the site has a page for each group of names."""
    listed = re.findall(r"^- `([\w.]+)`: ", (ROOT / "docs/python.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(warren_raft.__all__)
