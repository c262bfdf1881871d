"""The site: `make docs` builds it into build/docs, without network; a warning or a dead link fails the build."""

from typing import Any

import unlearn_metrics

project = "unlearn-metrics"
author = copyright = "the unlearn-metrics founders"
version = release = unlearn_metrics.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md"]
myst_heading_anchors = 4  # links as on the repository's own pages: page.md#a-heading

html_theme = "furo"
html_title = "unlearn-metrics"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_rtype = False
autodoc_member_order = "bysource"
default_role = "code"  # docstrings write code in single backticks


def bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """|a| in a docstring is a length, not reStructuredText's substitution."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", bars)
