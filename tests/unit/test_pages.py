"""The promise: a name in a page leads to the thing. A reader follows it from README and docs into the code.

Files move and functions get other names. Pages, docstrings and comments that name them have to follow.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prose import ROOT, files

PAGES = [path for path in files() if path.name != "CHANGELOG.md"]  # the changelog tells of files as they were
MARKDOWN = [path for path in PAGES if path.suffix == ".md"]
PACKAGE = ROOT / "warren_raft"

FILE_NAME = re.compile(r"(?<![\w./*-])(?:\.\./)*(?:[\w-]+/)*[\w-]+\.py\b")
NAME_IN_FILE = re.compile(r"`([\w/]+\.py)`, `(\w+)`(?: and `(\w+)`)?")
SECTION = re.compile(r"\| \*\*`([\w/]+)/`\*\*")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
CONFLICT = re.compile(r"^(?:<{7}|>{7}|\|{7}) ", re.MULTILINE)
THEIRS = {"syncobj.py", "first.py", "my_manager.py", "test_reconcile.py"}  # PySyncObj's, and the reader's own


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A page, or the docstrings and comments of a program, with the code in them."""
    source = path.read_text()
    if path.suffix == ".md":
        return source
    texts = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    statements = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr))
    texts += [each.value for each in statements if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return "\n".join(texts)


def lines_with_folders(path: Path) -> Iterator[tuple[str, list[Path]]]:
    """Each line of the prose, with the folders in which its file names are looked up: the page's own, warren_raft/,
    tests/, the project; and in a table the package of its section."""
    folders = [path.parent, PACKAGE, ROOT / "tests", ROOT]
    section = path.parent
    for line in prose(path).splitlines():
        if heading := SECTION.match(line):
            section = next(folder / heading[1] for folder in folders if (folder / heading[1]).is_dir())
        yield line, [section, *folders] if line.startswith("|") else folders


def find(file_name: str, folders: list[Path]) -> Path | None:
    return next((folder / file_name for folder in folders if (folder / file_name).is_file()), None)


def unknown_files(lines: Iterator[tuple[str, list[Path]]]) -> list[str]:
    return [
        file_name
        for line, folders in lines
        for file_name in FILE_NAME.findall(line)
        if file_name not in THEIRS and find(file_name, folders) is None
    ]


def test_no_page_or_program_has_the_marks_of_a_merge_that_conflicted() -> None:
    """Both versions of a module's docstring once stood in main, with the marks between them: Python accepts those in a
    docstring, and so did every other check."""
    assert [name(path) for path in files() if CONFLICT.search(path.read_text())] == []


def test_a_file_that_is_named_exists() -> None:
    """A program is parsed only if its source names an unknown file; the name may be in its code."""
    unknown = []
    for path in PAGES:
        lines = ((line, [path.parent, PACKAGE, ROOT / "tests", ROOT]) for line in path.read_text().splitlines())
        if path.suffix == ".md" or unknown_files(lines):
            unknown += [f"{name(path)}: {file_name}" for file_name in unknown_files(lines_with_folders(path))]
    assert unknown == []


def test_a_name_that_a_page_looks_for_in_a_file_is_there() -> None:
    """`raft/guard.py`, `_append` is a function, a class or a constant of that file."""
    found, unknown = 0, []
    for path in MARKDOWN:
        for line, folders in lines_with_folders(path):
            for file_name, *names in NAME_IN_FILE.findall(line):
                file = find(file_name, folders)
                assert file is not None, f"{name(path)}: {file_name}"
                for each in filter(None, names):
                    found += 1
                    if not re.search(rf"(?:def|class) {each}\b|^{each}\b *[:=]", file.read_text(), re.MULTILINE):
                        unknown.append(f"{name(path)}: {file_name}, {each}")
    assert unknown == []
    assert found > 10


def test_each_module_has_a_row_in_the_table_of_its_package() -> None:
    """The tables (file, matter, invariant) are the way in for a newcomer."""
    listed = set()
    for path in [ROOT / "docs/DESIGN.md", *PACKAGE.glob("**/DESIGN.md")]:
        for line, folders in lines_with_folders(path):
            if line.startswith("|"):
                files_of_row = (find(each, folders) for each in FILE_NAME.findall(line.split("|")[1]))
                listed |= {file.resolve() for file in files_of_row if file is not None}
    modules = [path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert [name(path) for path in modules if path not in listed] == []


@pytest.mark.parametrize("path", MARKDOWN, ids=name)
def test_a_link_leads_to_a_page_and_its_heading(path: Path) -> None:
    for target, anchor in LINK.findall(path.read_text()):
        file = path.parent / target if target else path
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            anchors = {slug(heading) for heading in HEADING.findall(file.read_text())}
            assert anchor in anchors, f"{target}#{anchor}"


def slug(heading: str) -> str:
    """The anchor that a forge gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# The drawing of the imports ------------------------------------------------------------------------------------------

BESIDE = {("snapshots/verification.py", "raft/membership.py")}
"""Imports that the text below the drawing names."""


def test_imports_go_down_in_the_drawing_of_the_design() -> None:
    """docs/DESIGN.md draws the packages in lines. A package imports from the lines below its own, and from the packages
    on its own side of the bar, or below it."""
    drawing = re.search(
        r"from a line to the lines below it:\n\n```\n(.*?)```", (ROOT / "docs/DESIGN.md").read_text(), re.DOTALL
    )
    assert drawing is not None
    line_of, side_of = {}, {}
    for number, line in enumerate(drawing[1].splitlines()):
        for side, names in enumerate(line.split("│")):
            for each in names.split():
                line_of[each], side_of[each] = number, side if "│" in line else None
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        for target in imported(path):
            here, there = room_of(path), room_of(target)
            if here == there or here == "__init__.py" or (inside(path), inside(target)) in BESIDE:
                continue
            is_across = None not in (side_of[here], side_of[there]) and side_of[here] != side_of[there]
            if line_of[here] >= line_of[there] or is_across:
                wrong.append(f"{inside(path)} imports {inside(target)}")
    assert wrong == []


def inside(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def room_of(path: Path) -> str:
    """The package below warren_raft/, or the name of a file in it."""
    return path.relative_to(PACKAGE).parts[0]


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements, at any depth. An expression contains none, and most of a tree is expressions."""
    for statement in body:
        yield statement
        for name in ("body", "orelse", "finalbody"):
            yield from statements(getattr(statement, name, []))
        for part in [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]:
            yield from statements(part.body)


def imported(path: Path) -> Iterator[Path]:
    """The modules of warren_raft that a module imports, for types too."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parent.parts]
    for node in statements(ast.parse(path.read_text()).body):
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            names = [start, *(f"{start}.{each.name}" for each in node.names)]
        else:
            continue
        for each in names:
            if each.startswith(f"{PACKAGE.name}."):
                file = ROOT / each.replace(".", "/")
                yield from (found for found in (file.with_suffix(".py"), file / "__init__.py") if found.is_file())


def test_the_changelog_has_each_change_once() -> None:
    """Two branches that both add lines at the top can leave an older form of a line behind the newer one."""
    lines = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("- ")]
    beginnings = Counter(line[:50] for line in lines)
    assert [beginning for beginning, count in beginnings.items() if count > 1] == []
