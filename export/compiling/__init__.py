"""Compile a network to a verified artifact: `hnas.export.compile`, `compile_mixed` and `Compiler`."""
