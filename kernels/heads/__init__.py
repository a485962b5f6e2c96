"""Decoder heads and likelihood as one operation: hidden units to one number per cell."""
