"""Data to start with: real blood cells inside the package, and a simulator with known truth."""

from __future__ import annotations

from ._pbmc import pbmc
from ._simulate import simulate, simulated_mean

__all__ = ["pbmc", "simulate", "simulated_mean"]
