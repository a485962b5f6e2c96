"""The one tolerance policy: what float32 results may miss, against the exact function."""

from __future__ import annotations

import numpy as np

VALUE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-13}
GRADIENT = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}
ROW_SUM = 1e-6  # relative, against the float64 sum of a row of genes


def log_mu_rounding(sensitivity: np.ndarray, log_mu: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """What rounding log mu itself must cost a quantity with this derivative by log mu."""
    bits = 22 if np.dtype(dtype) == np.float32 else 51
    return np.abs(sensitivity) * 2.0**-bits * np.maximum(1, np.abs(log_mu))


def share(got: np.ndarray, exact: np.ndarray, relative: float, rounding=0.0) -> np.ndarray:
    """Error as a share of what is allowed; not-a-number where `got` is."""
    allowed = relative * np.maximum(1, np.abs(exact)) + rounding
    return np.abs(got.astype(np.float64) - exact) / allowed
