"""Draw the subnets that a training step uses."""
