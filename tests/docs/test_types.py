"""What a type checker sees in a program that uses fastvae."""

import re
import shutil
import subprocess
import sys

from places import ROOT

PROGRAM = """
import torch
from fastvae import VAE, Model, __version__, functional

reveal_type(__version__)
model = Model("atlas.h5ad", batch_key="donor")
reveal_type(model.fit(max_epochs=3))
reveal_type(Model.load("run"))
reveal_type(model.gene_names)
reveal_type(VAE(3, n_batch=2).get_sample_rate)
x = torch.zeros(2, 3)
reveal_type(functional.zinb_nll(x, x, x, x, x))
model.fit(max_epochs="3")
VAE(3, n_batches=2)
"""
TYPES = ["str", "Model", "Model", "list[str]", "Tensor", "Tensor"]


def test_a_client_sees_types(tmp_path):
    """Real types, and a wrong argument is an error, in mypy's strict mode."""
    shutil.copytree(ROOT / "fastvae", tmp_path / "fastvae")  # with py.typed, as it is installed
    shutil.copytree(ROOT / "kernels", tmp_path / "fastvae" / "kernels")
    (tmp_path / "client.py").write_text(PROGRAM)
    command = [
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        "cache",
        "client.py",
    ]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    seen = [m[1] for line in lines if (m := re.search(r'Revealed type is "(.*)"', line))]
    assert len(seen) == len(TYPES), done.stdout + done.stderr
    for found, expected in zip(seen, TYPES, strict=True):
        said = found.rpartition("-> ")[2]
        assert re.sub(r"\w+\.", "", said) == expected
    errors = [line for line in lines if ": error:" in line]
    assert [re.search(r"\[([\w-]+)\]$", line)[1] for line in errors] == ["arg-type", "call-arg"]
