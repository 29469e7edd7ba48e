"""Measures what a batch costs: ``python -m benchmarks --help``, or ``make bench``."""
