"""The promise: each page of the documentation has a place on the site, and tables of it have every name that there is.

Building the site (scripts/docs.sh) checks the places and all links, but needs packages that these tests do without.
"""

from __future__ import annotations

import ast
import re
import runpy
from dataclasses import MISSING, fields
from pathlib import Path

import warren_raft
from tests.prose import ROOT, files
from warren_raft import metrics, testing
from warren_raft_cli.serve import serve

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
    of_packages = [f"{each.__name__.partition('.')[2]}.{name}" for each in (testing, metrics) for name in each.__all__]
    assert sorted(listed) == sorted([*warren_raft.__all__, *of_packages])


def test_each_method_of_a_store_that_is_no_read_and_no_write_is_in_the_python_reference() -> None:
    """(Pins a fault: no page had `add_member`, `wait_failed` and `reload_certificate`.)"""
    page = (ROOT / "docs/python.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page.partition("## A manager and its cluster")[2], re.MULTILINE)
    listed = re.findall(r"`(\w+)`", "".join(rows))
    parts = {*dir(warren_raft.Reader), *dir(warren_raft.Writer)}
    assert sorted(listed) == sorted(name for name in {*dir(warren_raft.Store)} - parts if not name.startswith("_"))


def test_each_setting_has_a_row_with_its_default_and_its_option() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) ?\|$", page, re.MULTILINE)
    assert [name for name, _, _ in rows] == [field.name for field in fields(warren_raft.Config)]
    for field, (name, default, option) in zip(fields(warren_raft.Config), rows, strict=True):
        assert re.match(rf"{'required' if field.default is MISSING else field.default}\b", default), name
        options = [each.opts[0] for each in serve.params if name in (each.name, f"{each.name}_seconds")]
        assert option == "".join(f"`{each}`" for each in options), name


def test_the_files_of_a_data_directory_are_those_of_the_page(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/files.md").read_text(), re.MULTILINE)
    names = re.findall(r"`(.*?)`", "".join(rows))
    patterns = [re.sub(r"[A-Z]+", "[0-9]+", re.escape(name)) + (".*" if name.endswith("/") else "") for name in names]
    directory = tmp_path / "m1"

    def unknown() -> list[str]:
        found = [str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()]
        assert len(found) > 5
        return [name for name in found if not any(re.fullmatch(each, name) for each in patterns)]

    with testing.Cluster(size=1, directory=tmp_path, admin=True, insecure_plaintext=False):
        assert unknown() == []
    assert unknown() == []


def test_the_pictures_are_those_of_their_source() -> None:
    """If this fails: `python docs/pictures/draw.py`. The house is drawn from the drawing in docs/DESIGN.md."""
    for name, draw in runpy.run_path(str(ROOT / "docs/pictures/draw.py"))["PICTURES"].items():
        assert (ROOT / "docs/pictures" / name).read_text() == draw().svg(), name
