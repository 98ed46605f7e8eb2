"""Exact rewrites of a program's graph: one pass, or one family of passes, a file."""
