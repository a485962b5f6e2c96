"""pytest bench/: everybody is checked before being timed, and the file says what was measured."""

import json
import os
import subprocess
import sys
import time

import pytest
from places import ROOT

OURS = {"fastvae cpu", "fastvae torch"}


def run_bench(*options):
    # the interpreter, which other tests switch on, would be taken for a backend to time, and
    # nothing is timed where tests run side by side
    others = ("TRITON_INTERPRET", "PYTEST_XDIST")
    variables = {k: v for k, v in os.environ.items() if not k.startswith(others)}
    variables["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--threads=1"]
    return subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, env=variables, check=False
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Everything quick but what is compiled, which takes most of its time."""
    out = tmp_path_factory.mktemp("bench")
    done = run_bench("bench/", "--quick", f"--bench-out={out}", "-k", "not zinb-csr")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    return done.stdout, {path.stem: json.loads(path.read_text()) for path in out.iterdir()}


def test_every_level_is_there_with_hardware_versions_and_commit(quick):
    output, found = quick
    assert set(found) == {"operations", "loader", "step", "end_to_end"}
    for content in found.values():
        environment = content["environment"]
        assert environment["versions"]["torch"]
        assert "commit" in environment
        assert environment["device"]
        assert (content["threads"], content["quick"]) == (1, True)
    assert "benchmark 'training step zinb learned library 64 300 cpu'" in output


def test_who_was_timed_had_agreed_and_who_was_not_has_a_reason(quick):
    for name, content in quick[1].items():
        for row in content["rows"]:
            timed = set(row["milliseconds"])
            assert timed == set(row["agreement"]), name
            assert all(found["agrees"] for found in row["agreement"].values())
            assert not timed & set(row["left_out"])
            assert all(row["left_out"].values())
            base = row["milliseconds"][row["baseline"]]
            for provider, ms in row["milliseconds"].items():
                low, high = row["quartiles"][provider]
                assert 0 < low <= ms <= high
                assert row["ratios"][provider] == pytest.approx(ms / base)


def test_backends_and_the_witness_take_part(quick):
    found = quick[1]
    assert all(set(row["milliseconds"]) >= OURS for row in found["operations"]["rows"])
    (learned,) = [r for r in found["step"]["rows"] if r["kind"] == "learned library"]
    assert set(learned["milliseconds"]) >= {*OURS, "legacy"}
    assert learned["agreement"]["legacy"]["errors"]["loss"] < 1e-5
    assert all(mb is None or mb > 0.1 for mb in learned["peak_mb"].values())
    (loader,) = found["loader"]["rows"]
    assert set(loader["milliseconds"]) >= {"fastvae memory", "fastvae h5ad", "fastvae zarr"}


def test_files_that_are_there_are_not_replaced(tmp_path):
    (tmp_path / "step.json").write_text("{}")
    done = run_bench("bench/bench_step.py", "--quick", f"--bench-out={tmp_path}", "-k", "torch")
    assert done.returncode == 4
    assert "step.json exist; pass --overwrite" in done.stderr
    assert (tmp_path / "step.json").read_text() == "{}"


@pytest.fixture
def suite(monkeypatch):
    from _kit import contest

    return contest


def case_of(suite, **steps):
    """A case whose contenders sleep; `check` looks at what their step returns."""

    def check(name, step):
        return {"errors": {"value": abs(step() - 1.0)}, "agrees": step() == 1.0}

    def prepare():
        return suite.Contest({name: (lambda s=step: s) for name, step in steps.items()}, check)

    return suite.Case({"operation": "sleep"}, tuple(steps), prepare, 0.0, runs=1, warm_up=0)


def sleeping(seconds, value=1.0):
    def step():
        time.sleep(seconds)
        return value

    return step


def test_wrong_contenders_are_not_timed(suite):
    def broken():
        raise ImportError("no module named 'peer'")

    case = case_of(
        suite,
        **{
            "fastvae": sleeping(0.002),
            "slow": sleeping(0.02),
            "wrong": sleeping(0.0, 1.5),
            "nan": sleeping(0.0, float("nan")),
            "peer": broken,
            "fastvae wrong": sleeping(0.0, 2.0),
        },
    )
    outcome = suite.hold(case, case.providers)
    assert set(outcome.milliseconds) == {"fastvae", "slow"}
    row = outcome.row(case)
    assert row["baseline"] == "fastvae"
    assert 4 < row["ratios"]["slow"] < 12
    assert row["repeats"] == {"fastvae": 5, "slow": 5}
    assert row["left_out"]["wrong"] == "disagrees: value by 5.0e-01"
    assert row["left_out"]["nan"] == "disagrees: value by nan"
    assert row["left_out"]["peer"] == "not installed: no module named 'peer'"
    assert row["agreement"]["fastvae wrong"]["agrees"] is False  # ours: a failure, not left out


def test_a_failure_of_ours_fails_its_line(suite, monkeypatch):
    from _kit.turns import Turns

    case = case_of(suite, fastvae=sleeping(0.0, 2.0))
    with pytest.raises(AssertionError, match="fastvae disagrees"):
        Turns(True, {case: set(case.providers)}).show(None, case, "fastvae", "bench_x")


def test_times_are_replayed_one_by_one():
    from _kit.turns import Clock

    clock, seen = Clock(), []
    clock.load([3.0, 1.0, 2.0])
    for _ in range(3):
        before = clock.now()
        clock.run()
        seen.append(clock.now() - before)
    assert seen == pytest.approx([0.003, 0.001, 0.002])


def test_peak_memory_is_that_of_the_call(monkeypatch):
    import torch
    from _kit.memory import peak_megabytes

    found = peak_megabytes(lambda: torch.ones(8_000_000).sum(), torch.device("cpu"))
    if found is None:
        pytest.skip("this system does not tell")
    assert found == pytest.approx(32, abs=3)


@pytest.mark.parametrize("there", [False, True])
def test_compares_on_the_gpu_where_there_is_one(monkeypatch, there):
    import bench_operations
    import bench_step
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    found = [case for module in (bench_operations, bench_step) for case in module.cases(True)]
    assert {case.labels["device"] for case in found} == {"cuda" if there else "cpu"}


def test_says_what_it_compares_on():
    done = run_bench("bench/bench_step.py", "--quick", "--collect-only", "--verbose")
    assert "compared on: CPU" in done.stdout
    assert done.returncode == 0
