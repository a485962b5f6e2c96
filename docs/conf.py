"""Configuration of the documentation: ``sphinx-build -W docs OUT``. Nothing is fetched."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import mock

import fastvae

project = "fastvae"
author = "The fastvae developers"
project_copyright = author
version = release = fastvae.__version__

sys.path.insert(0, str(Path(__file__).parent))
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_design",
    "numpydoc",
    "command_reference",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_title = f"fastvae {version}"
html_show_copyright = False
smartquotes = False
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks have their outputs: python docs/run_notebooks.py

default_role = "py:obj"  # `name` in a docstring
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_attributes_as_param_list = True
html_math_renderer = "mathml"  # drawn by the browser itself: no script, no network
add_module_names = False

# scvi-tools is large; where it is not installed its classes, and those of the Lightning that comes
# with it, are stood in for.
if importlib.util.find_spec("scvi") is None:
    with mock(["scvi", "lightning", "torchmetrics"]):
        import scvi

        scvi.__version__ = "1.4"
        import fastvae.integrations.scvi_tools


def _formula(writer: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML."""
    block = isinstance(node, nodes.math_block)
    mathml = tex2mathml(node.astext(), as_block=block)
    writer.body.append(f'<div class="math">{mathml}</div>' if block else mathml)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register the writer of formulas."""
    app.add_html_math_renderer("mathml", (_formula, None), (_formula, None))
