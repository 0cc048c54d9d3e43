"""The library of *Large Language Models, Executed*: what the book's cells import."""

__version__ = "0.1.0"
