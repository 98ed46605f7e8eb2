"""Compile architectures of timm, torchvision and transformers: how many pass verification, and why others fail."""
