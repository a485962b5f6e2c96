"""Draws from a trained network, as functions of plain values."""
