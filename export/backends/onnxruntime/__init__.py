"""Compile for ONNX Runtime on a CPU."""
