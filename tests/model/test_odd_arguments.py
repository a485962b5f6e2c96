"""Odd values for every argument of the public methods and functions: an answer or an InputError.

Arguments are found by ``inspect.signature``, so a new one is tried without being named here.
A sample is tried; ``FASTVAE_FUZZ=all`` tries every value.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_values import ODD_VALUES, complaint
from small_models import small_data

import fastvae.plots
from fastvae import Model, datasets
from fastvae.data import read
from fastvae.train import TensorBoard, TrainSettings, resolve_device

EVERYTHING = os.environ.get("FASTVAE_FUZZ") == "all"
LIMIT = (20.0, 200.0)  # seconds; a compiler takes long
SAMPLE = 9  # values tried for each argument
SHORT = {"max_epochs": 1, "progress": False, "device": "cpu", "seed": 0}
GROUPS = {"groupby": "cell_type", "n_samples_overall": 20, "m_permutation": 20}
IMPORTANCE = {"weights": "importance", "n_samples_overall": 8}
FEW = {"max_cells": 4, "n_mc_samples": 4}

WRITERS = ("write_latent", "write_joint_latent", "write_normalized_expression")

# What a call needs beside the argument that is tried, so that the argument matters.
NEEDED: dict[str, dict[str, Any]] = {
    "differential_expression": GROUPS,
    "fit": SHORT,
    "get_feature_correlation_matrix": {"n_samples": 2},
    "get_marginal_ll": {"n_mc_samples": 4},
    "map_query": SHORT,
    "with_labels": {"labels_key": "cell_type"},
}
WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("Model", "encode_covariates"): {"batch_key": "batch"},
    ("Model", "genome"): {},
    ("Model", "linear_classifier"): {"labels_key": "cell_type", "unlabeled_category": "type_0"},
    ("Model", "unlabeled_category"): {"labels_key": "cell_type"},
    ("differential_expression", "batchid1"): {"batch_correction": True},
    ("differential_expression", "batchid2"): {"batch_correction": True},
    ("differential_expression", "cred_interval_lvls"): {"mode": "change"},
    ("differential_expression", "idx1"): {"groupby": None},
    ("differential_expression", "idx2"): {"groupby": None, "idx1": [0, 1, 2]},
    ("differential_expression", "importance_weighting_kwargs"): {"weights": "importance"},
    ("differential_expression", "m_permutation"): {"use_permutation": True},
    ("differential_expression", "weights"): {"importance_weighting_kwargs": FEW},
    ("fit", "checkpoint_every"): {"checkpoint_dir": "checkpoints"},
    ("fit", "checkpoint_minutes"): {"checkpoint_dir": "checkpoints"},
    ("fit", "keep_checkpoints"): {"checkpoint_dir": "checkpoints"},
    ("fit", "resume"): {"checkpoint_dir": "checkpoints"},
    ("get_normalized_expression", "importance_weighting_kwargs"): IMPORTANCE,
    ("get_normalized_expression", "weights"): {**IMPORTANCE, "importance_weighting_kwargs": FEW},
}


# What stands behind the name of collected keyword arguments.
READING = ["layer", "use_raw", "genome", "allow_fractional", "allow_links", "gene_names"]
HANDED_ON = {
    "reading": READING,
    "reading_and_fit": [
        *READING,
        *(name for name in inspect.signature(Model.fit).parameters if name != "self"),
    ],
}

# What a message may call the argument instead: the thing that it holds.
ANYTHING = ("",)
NAMES: dict[str, tuple[str, ...]] = {
    "data": ANYTHING,
    "source": ANYTHING,
    "result": ANYTHING,
    "n_top_genes": ("n_top_genes", "genes"),
    "latent": ("latent", "UMAP"),
    "folder": ("folder", "nowhere", "tensorboard"),
    "categories": ("categor",),
    "values": ("value",),
    "markers": ("marker",),
    "highlights": ("highlight",),
    "path": ("path", "folder", "output file"),
    "n_cells": ("n_cells", "n_batches", "n_types"),
    "weight_decay": ("weight_decay", "not finite"),
}


class Tried:
    """Public callables, and how each is called with one of its arguments replaced."""

    def __init__(self, folder: Path) -> None:
        self.data = small_data(60, 12)
        self.query = self.data.copy()
        self.query.obs["batch"] = self.query.obs["batch"].astype(str) + "_new"
        self.model = Model(self.data, batch_key="batch", n_latent=2, n_hidden=4)
        self.model.fit(1, seed=0, progress=False)
        self.labelled = self.model.with_labels("type_0", "cell_type", seed=0)
        self.labelled.fit(1, seed=0, progress=False)
        self.saved = folder / "saved"
        self.model.save(self.saved)
        self.latent = np.random.default_rng(0).normal(size=(60, 2))
        self.table = self.model.differential_expression(**GROUPS, fdr_target=0.9)
        self._number = itertools.count()
        methods = {
            name: member
            for name, member in inspect.getmembers(Model, callable)
            if not name.startswith("_") and name != "train"  # the same function as fit
        }
        functions = [Model, read, TrainSettings, TensorBoard, resolve_device]
        functions += [getattr(datasets, name) for name in datasets.__all__]
        functions += [getattr(fastvae.plots, name) for name in fastvae.plots.__all__]
        self.callables = {**methods, **{function.__name__: function for function in functions}}

    def arguments(self) -> Iterator[tuple[str, str]]:
        for name, function in self.callables.items():
            parameters = [n for n in inspect.signature(function).parameters if n != "self"]
            for keywords, handed_on in HANDED_ON.items():
                if keywords in parameters:
                    parameters.remove(keywords)
                    parameters += handed_on
            for parameter in dict.fromkeys(parameters):
                yield name, parameter

    def call(self, name: str, parameter: str, value: Any) -> Callable[[], Any]:
        new = f"out{next(self._number)}"
        required = {
            "data": self.query if name in ("load_query", "map_query") else self.data,
            "source": self.data,
            "reference": self.model,
            "folder": self.saved if name == "load" else new,
            "path": f"{new}.h5ad" if name in WRITERS else f"{new}.png",
            "labels": "cell_type",
            "device": "cpu",
            "n_cells": 50,
            "n_genes": 8,
            "history": self.model.history,
            "latent": self.latent,
            "coordinates": self.latent,
            "axis_names": ("a", "b"),
            "unlabeled_category": "type_0",
            "result": self.table,
        }
        function = self.callables[name]
        given = {
            key: required[key]
            for key, wanted in inspect.signature(function).parameters.items()
            if key in required and (wanted.default is inspect.Parameter.empty or key == "device")
        }
        if parameter in READING and "data" in inspect.signature(function).parameters:
            given["data"] = required["data"]
        if name == "transfer_labels":
            given["reference"] = self.model
        if name == "write_latent_into":
            given["path"] = f"{new}.h5ad"
            self.data.write_h5ad(given["path"])
        given.update(NEEDED.get(name, {}))
        given.update(WITH.get((name, parameter), {}))
        if given.get("checkpoint_dir"):
            given["checkpoint_dir"] = new
        given[parameter] = value
        if "self" in inspect.signature(function).parameters:
            model = self.labelled if name == "predict" else self.model
            model = copy.deepcopy(model) if name in ("fit", "to") else model
            return lambda: function(model, **given)
        return lambda: function(**given)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried(tmp_path_factory.mktemp("odd"))


def test_odd_values_give_an_answer_or_a_clear_refusal(
    tried: Tried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong, n_calls = [], 0
    for name, parameter in tried.arguments():
        rng = np.random.default_rng(zlib.crc32(f"{name}.{parameter}".encode()))
        count = len(ODD_VALUES) if EVERYTHING else SAMPLE
        for which in sorted(rng.permutation(len(ODD_VALUES))[:count]):
            label, make = ODD_VALUES[which]
            call = tried.call(name, parameter, make())
            names = NAMES.get(parameter, (parameter,))
            found = complaint(call, names, LIMIT[parameter == "compile"])
            n_calls += 1
            if found is not None:
                wrong.append(f"{name}({parameter}={label}): {found}")
    assert n_calls > 1500
    assert not wrong, f"{len(wrong)} of {n_calls} calls:\n" + "\n".join(wrong)
