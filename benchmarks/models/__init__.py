"""Benchmarks of the teacher's forward and backward pass."""
