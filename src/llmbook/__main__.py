"""`python -m llmbook` is the command `llmbook`."""

from llmbook.cli import app

app(prog_name="llmbook")
