"""Benchmarks of the synthesis."""
