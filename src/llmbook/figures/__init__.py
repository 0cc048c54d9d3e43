"""A few drawings, one style: rows in, axes out. Nothing here is for one page alone."""
