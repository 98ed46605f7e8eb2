"""Compile architectures of timm, torchvision and transformers: how many are built and right, and why others fail."""
