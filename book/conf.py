"""Sphinx configuration of the book. Versions and traps: CONTRIBUTING.md."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "_ext"))

from llmbook import __version__  # noqa: E402

project = "Large Language Models, Executed"
author = "The authors of Large Language Models, Executed"
copyright = "the authors; prose CC BY 4.0, code Apache 2.0"
version = release = __version__
language = "en"

# The address of the repository. Where it is empty, pages carry no link to report a fault.
repository = ""

extensions = [
    "myst_nb",
    "execution.sphinx_hook",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx_exercise",
    "sphinxcontrib.bibtex",
    "mathml",
    "formula",
    "solutions",
    "plan",
    "ledger",
    "citing",
    "pages",
    "printing",
    "electronic_book",
]
exclude_patterns = ["_ext", "_templates"]
templates_path = ["_templates"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r".*")
]  # signatures name types of other projects; pages link no Python objects
suppress_warnings = ["epub.duplicated_toc_entry"]

# Pages: MyST. Their cells were executed by the stage before Sphinx; nothing runs here.
myst_enable_extensions = [
    "amsmath",
    "colon_fence",
    "deflist",
    "dollarmath",
    "fieldlist",
    "substitution",
]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT.parent / "build" / "cache")
nb_execution_raise_on_error = True
nb_output_stderr = "remove-warn"
nb_merge_streams = True
nb_number_source_lines = False

# Mathematics, references
html_math_renderer = "mathml"
math_numfig = False  # the numbers that the renderers print
numfig = True
math_eqref_format = "({number})"
bibtex_bibfiles = [
    f"../bibliography/{name}.bib"
    for name in ("foundations", "training", "inference", "zoo", "data")
]
bibtex_default_style = "llmbook"
bibtex_reference_style = "author_year"
bibtex_cite_id = "ref-{key}"
bibtex_tooltips = True

autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # a function as default shows its name
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
intersphinx_mapping: dict[
    str, tuple[str, str | None]
] = {}  # nothing is fetched: the build is offline

# HTML
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_show_sourcelink = False
html_copy_source = False
html_baseurl = ""
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"
html_context = {"repository": repository}

# PDF
latex_engine = "xelatex"
latex_documents = [("index", "llmbook.tex", project, author, "manual")]
latex_toplevel_sectioning = "chapter"
latex_table_style = ["booktabs"]
latex_show_urls = "no"
latex_domain_indices = False
latex_use_xindy = False
latex_elements = {
    "papersize": "a4paper",
    "pointsize": "10pt",
    "extraclassoptions": "openany,oneside",
    "fncychap": "",
    "figure_align": "H",
    "sphinxsetup": "verbatimwithframe=false, VerbatimColor={RGB}{246,247,249}, "
    "hmargin={25mm,25mm}, vmargin={25mm,25mm}",
    "fontpkg": r"""
\usepackage{fontspec}
\setmainfont{TeX Gyre Termes}
\setsansfont{TeX Gyre Heros}
\setmonofont[Scale=0.82]{DejaVu Sans Mono}
\usepackage{xeCJK}
\setCJKmainfont[ItalicFont={Noto Serif CJK SC}]{Noto Serif CJK SC}
\setCJKsansfont[ItalicFont={Noto Sans CJK SC}]{Noto Sans CJK SC}
\setCJKmonofont[ItalicFont={Noto Sans Mono CJK SC}]{Noto Sans Mono CJK SC}
""",
    "preamble": (ROOT / "_ext" / "preamble.tex").read_text(encoding="utf8"),
    "printindex": "",
    "maketitle": r"\sphinxmaketitle",
    "tableofcontents": r"\renewcommand{\contentsname}{Contents}\sphinxtableofcontents",
}

# EPUB
epub_show_urls = "no"
epub_tocdepth = 2
epub_basename = "llmbook"
epub_exclude_files = ["_static/stix-two-math-OFL.txt"]
