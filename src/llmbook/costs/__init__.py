"""What it costs: integers in, integers out; no torch."""
