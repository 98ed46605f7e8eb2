"""Name the rungs of the recovery ladder. No torch: whoever chooses a rung needs none."""

# What `hnas.export.int8.ladder` can do for accuracy, cheapest first.
LADDER = ("bias", "equalise", "round", "finetune")
TRIALS = 32  # assignments that a choice of mixed precision tries; each costs a build and a measurement
