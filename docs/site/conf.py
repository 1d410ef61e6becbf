"""The documentation as a site (Sphinx): which files are pages, and in which order a reader finds them.

The pages are those of the repository, where a forge shows them too; scripts/docs.sh builds the site. Invariant: nothing
on the site is loaded from another host, because its reader may be offline.
"""

from __future__ import annotations

from typing import Final

from sphinx.application import Sphinx

project = "warren_raft"
html_title = "warren_raft"
html_copy_source = False
html_show_copyright = False

FAMILIES: Final = {
    "How-tos": (
        "docs/embedding",
        "docs/heartbeats",
        "Three hosts, certificates <docs/certificates>",
        "Lost and moved managers <docs/recovery>",
        "From a Go Warren <docs/from-warren>",
    ),
    "Reference": (
        "The command line <docs/cli>",
        "docs/alarms",
        "docs/logging",
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
include_patterns = ["*.md", "docs/*.md", "warren_raft/*/DESIGN.md"]
exclude_patterns = [".*", "site", "tests", "benchmarks"]

extensions = ["myst_parser", "sphinx_copybutton"]
myst_heading_anchors = 4  # the anchors of headings are those of a forge
html_theme = "furo"
html_static_path = ["."]
html_css_files = ["site.css"]
smartquotes = False  # commands and messages stay as they are typed
pygments_style = "friendly"
pygments_dark_style = "monokai"


def add_families(_app: Sphinx, name: str, source: list[str]) -> None:
    """The lists of pages are put behind README.md, which does not have them: a forge would show them as code."""
    if name == root_doc:
        for family, pages in FAMILIES.items():
            source[0] += "\n".join(["\n```{toctree}", ":hidden:", f":caption: {family}", "", *pages, "```\n"])


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_families)
