"""Benchmarks of the synthesis into a store."""
