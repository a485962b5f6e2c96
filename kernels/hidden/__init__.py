"""A hidden layer after its product: batch normalisation, ReLU and dropout as one operation."""
