"""Name the rungs of accuracy recovery, without importing torch."""

LADDER = ("bias", "equalise", "round", "finetune")  # the rungs of `hnas.export.int8.ladder`, cheapest first
TRIALS = 32  # largest number of mixed-precision assignments to try; each costs a build and a measurement
