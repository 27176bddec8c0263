"""Benchmarks of a whole run."""
