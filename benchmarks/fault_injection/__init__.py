"""Faults of real runs: processes that are killed or stopped, damaged files, full disks. See `benchmarks/faults.py`."""
