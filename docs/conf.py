"""How Sphinx builds these pages: ``make docs``."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]
# Airflow writes its configuration where it is first imported.
os.environ["AIRFLOW_HOME"] = str(ROOT / "var" / "docs" / "airflow")

from airflow_arcadia import __version__  # noqa: E402 - found by the path above

project = "airflow-provider-arcadia"
author = "the authors of airflow-provider-arcadia"
copyright = "Apache-2.0"
release = version = __version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "reference_tables", "external_links"]
exclude_patterns = ["_extensions"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = f"Airflow provider for KubeAGI Arcadia {release}"
html_copy_source = False
