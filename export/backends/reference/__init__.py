"""Store a program for eager torch, the definition of a right answer."""
