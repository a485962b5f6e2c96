"""Inputs for the test of `fuzzing` itself: one of each fault."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import numpy as np
from fuzzing import WrongAnswer


def try_one(number: int, folder: Path) -> str:
    kind = number % 7
    if kind == 1:
        ctypes.string_at(0)
    elif kind == 2:
        time.sleep(60)
    elif kind == 3:
        raise KeyError("obs")
    elif kind == 4:
        raise WrongAnswer("2 is not 3")
    elif kind == 5:
        np.ones(1 << 28)
    print("noise on the standard output")
    return "fine"
