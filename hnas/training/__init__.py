"""Train a supernet: the loop, its steps, optimiser and checkpoints."""
