"""Labelled real images: readers, evaluation and the training of a teacher. No other package uses labels."""
