"""Explain failures: try one backend, shrink a failing program, name unsupported operators, profile layers."""
