"""Capture a torch module as an ATen graph, and rewrite that graph exactly."""
