"""Our artifacts against those of each runtime's own tools: built in child processes, timed in turns, then judged."""
