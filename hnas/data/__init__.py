"""Data sets on disk: images in memory, listings of larger sets, held-out splits. No torch."""
