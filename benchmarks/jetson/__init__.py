"""Compare predicted latencies with published ones: ``python -m hnas.benchmarks.jetson jetson.csv``.

The command prints published and predicted latency for each row, the errors that leave one network out, and with
``--write`` the efficiencies that `hnas.hw_profiles.calibration` reads.
"""
