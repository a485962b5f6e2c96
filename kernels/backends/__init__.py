"""Backends: each says which code computes each operation."""
