"""Differential expression between groups of cells."""
