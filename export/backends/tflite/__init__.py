"""Compile for LiteRT (TensorFlow Lite) on a CPU."""
