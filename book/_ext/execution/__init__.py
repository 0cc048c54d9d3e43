"""Execute, then render: run the code of a MyST-NB book before Sphinx starts.

The stage fills a jupyter-cache (`python -m execution BOOK --cache DIR`); Sphinx then renders from
it and executes nothing (extension `execution.sphinx_hook`). Nothing here knows which book it is.
README.md says what is promised and how a page's key is made.
"""
