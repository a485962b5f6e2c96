"""What scvi-tools answered with the weights of a small model, and that model."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fastvae import Model
from fastvae.datasets import simulate

FOLDER = Path(__file__).parent.parent / "fixtures"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", FOLDER / "record_scvi_tools.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_RECORD = _script()
QUESTIONS: dict[str, dict[str, Any]] = _RECORD.DE
SETTINGS: dict[str, Any] = _RECORD.DE_SETTINGS


@cache
def arrays() -> dict[str, np.ndarray]:
    """Return every recorded array by name."""
    with np.load(FOLDER / "scvi_tools_answers.npz") as found:
        return dict(found)


@cache
def model() -> tuple[Model, list[str]]:
    """Return the model with the recorded weights, and its genes."""
    data = simulate(**_RECORD.DATA)
    made = Model(data, **_RECORD.OPTIONS)
    state = {
        name.removeprefix("weights/"): torch.from_numpy(values)
        for name, values in arrays().items()
        if name.startswith("weights/")
    }
    made.module.load_state_dict(state)
    made.is_trained = True
    return made, made.gene_names
