"""Compile a network to a verified artifact. Holds `compile`, `compile_mixed` and `Compiler` of `hnas.export`."""
