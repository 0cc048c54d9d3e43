"""How a model is trained, on many processes."""
