"""What scvi 0.6.8 computed, as recorded by ``tests/fixtures/legacy/make_witness.py``."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import torch

from fastvae import LDVAE, VAE

LEGACY = pathlib.Path(__file__).parents[1] / "fixtures" / "legacy"
CLASSES = {"VAE": VAE, "LDVAE": LDVAE}

with np.load(LEGACY / "witness.npz") as _file:
    _VALUES = torch.from_numpy(_file["values"])
    INDEX = json.loads(_file["index"].tobytes())


def array(entry):
    """The recorded tensor of an index entry (offset, shape)."""
    offset, shape = entry
    return _VALUES[offset : offset + int(np.prod(shape))].view(shape)


def arrays(entries):
    """The recorded tensors of a dict of index entries."""
    return {name: array(entry) for name, entry in entries.items()}


INPUTS = arrays(INDEX["inputs"])
INPUTS["batch_index"] = INPUTS["batch_index"].long()
INPUTS["y"] = INPUTS["y"].long()
N_GENES = INPUTS["x"].shape[1]


def case_id(case):
    """A readable name: the options that differ between cases."""
    return "-".join([case["class"], *(f"{v}" for v in case["options"].values())])


def build(case, **more):
    """The model as initialised from the recorded seed."""
    torch.manual_seed(INDEX["seeds"]["init"])
    return CLASSES[case["class"]](N_GENES, **case["options"], **more)


def load(case, model):
    """Load the recorded state, which must fit name by name."""
    state = arrays(case["state"])
    own = model.state_dict()
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=True)
    return model


def batch_for(case):
    """The batch_index a case was run with."""
    n_batch = case["options"].get("n_batch", 0)
    if n_batch == 0:
        return None
    return INPUTS["batch_index"] if n_batch > 1 else torch.zeros_like(INPUTS["batch_index"])


def counts_for(case):
    """The x a case was run with."""
    return INPUTS["x"].clamp(max=case.get("x_max", float("inf")))


def error(got, want):
    """Largest error relative to max(1, |want|)."""
    if want.numel() == 0:
        return 0.0
    return ((got.detach() - want).abs() / want.abs().clamp(min=1)).max().item()


def assert_parity(got, want, name, tolerance=1e-5):
    """The project's promise: 1e-5 max(1, |want|) in every element."""
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    worst = error(got, want)
    assert worst <= tolerance, f"{name}: relative error {worst:.2e}"
