"""Models as data, and what only one family has."""
