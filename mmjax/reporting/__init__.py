"""Reporting: console tables, plots and Markdown of runs and experiments."""
