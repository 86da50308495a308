"""Measurements behind the figures that the README states. Run from the repository root: `python -m benchmarks.NAME`."""
