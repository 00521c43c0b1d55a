"""Sphinx: the manual. `make docs` builds it."""

project = "kernel memory inspector"
author = "the kernel memory inspector's authors"
copyright = f"2026, {author}"
release = "0.1.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "kernel memory inspector"

autodoc_typehints = "description"
autodoc_member_order = "bysource"
nitpicky = False
