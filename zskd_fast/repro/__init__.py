"""Repeats what was published, and what this project claims, from the teacher to a table of accuracies."""
