"""Tests of the device profiles."""
