"""Evaluates a detector on a labelled set: the pass over its images, the numbers, and the command that prints them."""
