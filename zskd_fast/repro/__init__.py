"""Repeat published results and the results of this package, from a teacher to a table of accuracies."""
