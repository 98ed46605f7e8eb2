"""Compile for TensorRT."""
