"""Rewrite the graph of a program exactly. Each file has one pass, or one family of passes."""
