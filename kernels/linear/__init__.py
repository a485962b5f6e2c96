"""The first layer on counts, row sums, and products of dense matrices."""
