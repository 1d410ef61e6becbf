"""The documentation as a site (Sphinx): which files are pages, and in which order a reader finds them.

The pages are those of the repository, where a forge shows them too; scripts/docs.sh builds the site. Invariant: nothing
on the site is loaded from another host, because its reader may be offline.
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from sphinx.application import Sphinx

import warren_raft
from warren_raft import metrics, testing
from warren_raft.store.writing import WriteMethods

project = "warren_raft"
html_title = "warren_raft"
html_copy_source = False
html_show_copyright = False

FAMILIES: Final = {
    "Tutorial": ("docs/tutorial",),
    "How-tos": (
        "All tasks <docs/how-to>",
        "docs/embedding",
        "An orchestrator to copy from <examples/orchestrator/README>",
        "docs/heartbeats",
        "Three hosts, certificates <docs/certificates>",
        "Backups <docs/backups>",
        "Lost and moved managers <docs/recovery>",
        "docs/disk-full",
        "docs/upgrade",
        "From a Go Warren <docs/from-warren>",
    ),
    "Reference": (
        "Python <docs/python>",
        "The command line <docs/cli>",
        "docs/configuration",
        "docs/alarms",
        "docs/metrics",
        "docs/health",
        "Log lines <docs/logging>",
        "docs/files",
        "Files of the log <docs/log-format>",
        "docs/glossary",
        "CHANGELOG",
    ),
    "Design and safety": (
        "docs/DESIGN",
        "Design of store <warren_raft/store/DESIGN>",
        "Design of fsm <warren_raft/fsm/DESIGN>",
        "Design of raft <warren_raft/raft/DESIGN>",
        "Design of snapshots <warren_raft/snapshots/DESIGN>",
        "Design of watching <warren_raft/watching/DESIGN>",
        "docs/safety",
        "SECURITY",
        "docs/performance",
        "docs/soak",
        "Holes in PySyncObj <docs/pysyncobj-holes>",
        "docs/upstream-cbor2",
        "CONTRIBUTING",
    ),
}
"""The pages behind README.md. A page that is in no family fails the build."""

root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/python/*.md", "warren_raft/*/DESIGN.md", "examples/*/README.md"]
exclude_patterns = [".*", "site", "tests", "benchmarks"]

extensions = ["myst_parser", "sphinx_copybutton", "sphinx.ext.autodoc"]
myst_heading_anchors = 4  # the anchors of headings are those of a forge
html_theme = "furo"
html_static_path = ["."]
html_css_files = ["site.css"]
smartquotes = False  # commands and messages stay as they are typed
pygments_style = "friendly"
pygments_dark_style = "monokai"


# ---- The Python reference: docs/python.md lists the names in groups, and each group becomes a page of docstrings.

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "py:obj"  # `Config` in a docstring is a link; a text that names nothing public is shown as code
maximum_signature_line_length = 100
python_use_unqualified_type_names = True

PYTHON: Final = Path(__file__).parents[1] / "python.md"
PUBLIC: Final = {f"warren_raft.{name}": getattr(warren_raft, name) for name in warren_raft.__all__} | {
    f"{package.__name__}.{name}": getattr(package, name) for package in (testing, metrics) for name in package.__all__
}
"""The name under which programs import each thing, and the thing."""
CLASSES: Final = {value: name for name, value in PUBLIC.items() if inspect.isclass(value)}
_ERRORS: Final = [each.__name__ for each in CLASSES if issubclass(each, Exception)]
_ERROR: Final = re.compile(rf"\b(?:{'|'.join(_ERRORS)})\b")
_CODE: Final = re.compile(r"`(\w+)`")
_LINK: Final = re.compile(r"\[([^]]+)\]\(([^)#\s]+)\)")
_SETTING: Final = re.compile(r"^\| `(\w+)`", re.MULTILINE)
_NAME: Final = re.compile(r"^- `([\w.]+)`", re.MULTILINE)
_GROUP: Final = re.compile(r"]\(\.\./#([\w-]+)\)")
"""A link to another group of the page, which has a page of its own on the site."""


def write_reference(_app: Sphinx) -> None:
    """Write the pages of the groups, which are not committed."""
    folder = PYTHON.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)  # a group may have had another title
    folder.mkdir()
    for title, text in groups():
        prose = _CODE.sub(linked, text.partition("\n- `")[0].replace("](", "](../"))
        prose = _GROUP.sub(r"](\1.md)", prose)
        entries = "\n".join(entry(name) for name in _NAME.findall(text))
        (folder / f"{slug(title)}.md").write_text(f"# {title}\n{prose}\n\n```{{eval-rst}}\n{entries}```\n")


def groups() -> Iterator[tuple[str, str]]:
    """The titles and texts of the groups."""
    for group in re.split(r"^## ", PYTHON.read_text(), flags=re.MULTILINE)[1:]:
        title, _, text = group.partition("\n")
        yield title, text


def slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def linked(code: re.Match[str]) -> str:
    """A public name as a link to its description."""
    return f"{{py:obj}}`{code[1]} <warren_raft.{code[1]}>`" if f"warren_raft.{code[1]}" in PUBLIC else code[0]


def entry(name: str) -> str:
    """The directive for one name: autodoc finds the docstring."""
    value = PUBLIC[f"warren_raft.{name}"]
    if not inspect.isclass(value):
        kind = "autofunction" if inspect.isfunction(value) else "autodata"
        return f".. {kind}:: warren_raft.{name}\n"
    options = [":members:"]
    public = [base for base in value.__mro__[1:] if base in CLASSES]
    if value is not warren_raft.Reader:
        public.append(warren_raft.Reader)
    known = [base for base in value.__mro__[1:] if is_foreign(base) or any(base in each.__mro__ for each in public)]
    if issubclass(value, Enum):
        options.append(":undoc-members:")  # its values
    options.append(f":inherited-members: {', '.join(base.__name__ for base in known)}")
    return "\n   ".join([f".. autoclass:: warren_raft.{name}", *options]) + "\n"


def is_foreign(base: type) -> bool:
    """Whether a class is of another package. (Autodoc cannot ask a protocol for its subclasses.)"""
    return not base.__module__.startswith("warren_raft") and not getattr(base, "_is_protocol", False)


def is_described_elsewhere(_app: Sphinx, _kind: str, name: str, value: Any, _skip: bool, _options: Any) -> bool | None:
    """The writes are described once, as those of Writer. A method without a docstring is described
    in its base class."""
    if not inspect.isfunction(value) and not isinstance(value, property):
        return None
    is_copy = name in vars(WriteMethods) and getattr(value, "__qualname__", "") != f"Writer.{name}"
    return True if is_copy or value.__doc__ is None else None


def as_rst(_app: Sphinx, kind: str, _name: str, value: Any, _options: Any, lines: list[str]) -> None:
    """A docstring as reStructuredText. The text about arguments and errors that each write has is left to its class."""
    if kind == "method" and value.__name__ in vars(WriteMethods):
        del lines[lines.index("") + 1 :]
    parts = "\n".join(each for line in lines for each in listed(line)).split("`")
    parts[::2] = [_ERROR.sub(r"`\g<0>`", part) for part in parts[::2]]
    parts[1::2] = [
        f"`{part}`" if part.startswith(".") else part for part in parts[1::2]
    ]  # as code: a role drops the dot
    lines[:] = "`".join(parts).split("\n")


def listed(line: str) -> list[str]:
    """The lists of errors in docstrings (indented: a name, a colon, its meaning) as lists of reStructuredText."""
    if error := re.match(r" {4}(\w+): ", line):
        return ["", f"* `{error[1]}`: {line[error.end() :]}"]
    return [line.replace("        ", "  ", 1)] if line.startswith(" " * 8) else [line]


def resolve(app: Sphinx, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """A public class has the name under which programs import it, and not that of its module."""
    last = node.get("reftarget", "").rpartition(".")[2]
    name = next((each for each in PUBLIC if each.endswith(f".{last}")), None)
    if node.get("refdomain") != "py" or name is None:
        return None
    domain = env.get_domain("py")
    found: nodes.Node | None = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
    return found


# ---- The parts together


def change_source(app: Sphinx, name: str, source: list[str]) -> None:
    """README.md and docs/python.md get the lists of the pages below them, which a forge would show as code. A link to a
    folder is a link on a forge only."""
    folder = Path(app.srcdir, name).parent
    source[0] = _LINK.sub(lambda link: link[1] if (folder / link[2]).is_dir() else link[0], source[0])
    if name == root_doc:
        for family, pages in FAMILIES.items():
            source[0] += toctree(pages, f":caption: {family}")
    if name == "docs/configuration":
        source[0] = _SETTING.sub(r"| {py:obj}`\1 <warren_raft.Config.\1>`", source[0])
    if name == "docs/python":
        source[0] = _NAME.sub(r"- {py:obj}`\1 <warren_raft.\1>`", source[0])
        source[0] += toctree(tuple(f"python/{slug(title)}" for title, _ in groups()))


def toctree(pages: tuple[str, ...], *options: str) -> str:
    return "\n".join(["\n```{toctree}", ":hidden:", *options, "", *pages, "```\n"])


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_reference)
    app.connect("source-read", change_source)
    app.connect("autodoc-skip-member", is_described_elsewhere)
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("missing-reference", resolve)
