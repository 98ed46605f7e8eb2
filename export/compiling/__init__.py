"""Compile a network to a verified artifact: `hnas.export.compile` and its parts."""
