"""Runs in workdirs: training, evaluation, parallel runs, and reproduction of recorded experiments."""
