"""What a model computes, and how it learns."""
