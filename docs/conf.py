"""How the pages become a site: ``make docs``. Nothing here needs the network."""

import sys
from importlib import import_module
from importlib.metadata import version as installed
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "extensions"), str(DOCS.parent), str(DOCS.parent / "plugins")]

project = "rabbitevents"
release = version = installed("rabbitevents")
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.linkcode",
    "sphinx_copybutton",
    "annotations",  # these in extensions/
    "narrow",
    "pictures",
    "source_pages",
]
exclude_patterns = ["_build", "compose", "extensions", "service"]

# Pages: Markdown that reads as well without Sphinx.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]  # a picture elsewhere, too

# Reference: what stands in the docstrings, in the order of the code.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "both"  # in the signature, and in the list of the parameters
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
linkcode_resolve = import_module("source_pages").source_of

# Looks.
html_theme = "furo"
html_title = f"rabbitevents {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"

# A copied console block is its commands, without prompts and output.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_exclude = ".linenos, .gp, .go"
