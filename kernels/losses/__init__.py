"""Sums of the losses of cells."""
