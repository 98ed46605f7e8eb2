"""Measure what a person gets from a folder of photographs: supernets from scratch and from weights, and a plain CNN."""
