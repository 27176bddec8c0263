"""The only room that knows labels: readers of image sets, evaluation, and the training of a teacher."""
