"""Inputs that are broken or hostile, for every command that reads files."""
