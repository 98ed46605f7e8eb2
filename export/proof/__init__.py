"""Verify and measure artifacts, and explain the measurements. Nothing here imports torch."""
