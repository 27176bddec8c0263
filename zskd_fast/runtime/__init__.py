"""Processes, threads, seeds, files, locks, timing, CUDA graphs, progress bars and the environment of a run."""
