"""Read, check, write and quantise ONNX files."""
