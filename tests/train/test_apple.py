"""Training on an Apple GPU, as far as a machine without one can tell; see `apple_gpu`."""

import json
import subprocess
import sys

import apple_gpu
import pytest
import torch
from places import ROOT

from fastvae import InputError, functional
from fastvae._torch import csr_of, resolve_device, training_device
from fastvae.functional import dispatch


def test_trains_with_what_an_apple_gpu_has(tmp_path):
    """No float64, no sparse tensor, only operations with a Metal kernel; the CPU's losses."""
    program = [sys.executable, str(ROOT / "tests" / "support" / "apple_gpu.py"), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert len(report["runs"]) == 4
    for run in report["runs"]:
        assert run["trained_on"] == apple_gpu.NAME
        assert run["device"] == "cpu"  # it came back
        assert run["apple"] == pytest.approx(run["cpu"], rel=1e-5)
        assert run["apple"][2] < run["apple"][0]
    assert {"_fused_adam_", "native_batch_norm", "mm", "log1p"} <= set(report["operations"])
    assert report["without_metal"] == []


def test_the_stand_in_refuses_what_an_apple_gpu_lacks():
    assert not apple_gpu.has_metal_kernel("geqrf")
    assert apple_gpu.has_metal_kernel("add.Tensor")  # through the operation it delegates to
    nothing = torch.zeros(3, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0)
    for wrong in (torch.zeros(2, dtype=torch.float64), csr_of(*nothing, (2, 2))):
        with pytest.raises(AssertionError, match="Apple's GPUs have no"):
            apple_gpu.OnApple(wrong)


def test_mps_is_for_training(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="'mps' is not available: torch sees no Apple GPU"):
        training_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert training_device("mps") == torch.device("mps")
    with pytest.raises(InputError, match="'mps' is for training alone"):
        resolve_device("mps")


def test_rocm_is_refused(monkeypatch):
    """torch gives AMD's GPUs the name cuda."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for find in (resolve_device, training_device):
        with pytest.raises(InputError, match=r"'cuda' cannot be used: .* built for ROCm \(AMD\)"):
            find("cuda")
        assert find("auto") == torch.device("cpu")

    class OnCuda:
        is_cpu, is_cuda, dtype, device = False, True, torch.float32, torch.device("cuda", 0)

    with functional.use_backend("triton"), pytest.raises(InputError, match="built for ROCm"):
        dispatch.select(OnCuda())
    assert dispatch.select(OnCuda()) is dispatch.REFERENCE
