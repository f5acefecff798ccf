"""Sphinx configuration. `make docs` builds the site into build/docs with warnings as errors."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "extensions")]

from melanoma_spark import __version__  # noqa: E402

project = "melanoma_spark"
author = "the melanoma_spark authors"
copyright = author  # no year: the same sources give the same pages
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
exclude_patterns = ["extensions"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4  # links to headings are checked by the build

# Nothing of these is needed to read signatures and docstrings, and TensorFlow alone takes seconds to import.
autodoc_mock_imports = ["tensorflow", "keras", "horovod", "mlflow", "ncnn", "onnxruntime", "tf2onnx", "hdfs_native"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_use_ivar = True  # as attributes they would be described twice
# Types of other libraries have no pages here: their inventories are on the network, which a build does not need.
nitpick_ignore_regex = [("py:.*", ".*")]

html_theme = "pydata_sphinx_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = "melanoma_spark"
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "announcement": "Research software. It is not a medical device, and no output is a diagnosis.",
    "navbar_align": "left",
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
