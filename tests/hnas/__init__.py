"""Tests of the hnas package."""
