"""Benchmarks of the distillation."""
