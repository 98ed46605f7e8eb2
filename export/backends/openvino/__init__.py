"""Compile for OpenVINO on a CPU."""
