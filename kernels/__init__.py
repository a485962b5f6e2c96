"""Kernels behind ``fastvae.functional``; no public API."""
