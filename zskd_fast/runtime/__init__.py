"""Processes, threads, seeds, files, locks, timing, CUDA graphs: what the driver needs from the machine."""
