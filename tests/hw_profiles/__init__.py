"""Laws of the device profiles."""
