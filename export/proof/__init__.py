"""Verify and measure artifacts, and explain what was measured. No torch."""
