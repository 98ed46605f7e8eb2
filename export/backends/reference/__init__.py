"""Store a program for eager torch, the reference for all other backends."""
