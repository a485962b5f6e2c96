"""bench/gpu_suite.py: a whole run at tiny sizes on the CPU, and what it does when a part fails."""

import argparse
import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from places import BENCH

PARTS = ["bandwidth", "kernels", "operations", "training", "tiles"]  # "tests" would nest pytest


@pytest.fixture
def suite(monkeypatch):
    import gpu_suite

    return gpu_suite


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("suite")
    command = [sys.executable, str(BENCH / "gpu_suite.py"), f"--out={out}", "--quick"]
    command += ["--device=cpu", "--compile-seconds=0", f"--parts={','.join(PARTS)}"]
    command += [f"--peer-python={out / 'no-such-python'}"]
    # the interpreter, which other tests switch on, would take minutes
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def load(out, part):
    return json.loads((out / f"{part}.json").read_text())


def test_summary_says_what_ran_on_what(quick_run):
    summary = load(quick_run, "summary")
    assert list(summary["parts"]) == PARTS
    assert {result["state"] for result in summary["parts"].values()} == {"done"}
    assert summary["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert summary["device"].startswith("CPU")
    assert summary["seconds"] >= sum(p["seconds"] for p in summary["parts"].values()) - 1
    assert summary["left_out"] == {}


def test_every_timed_contender_agreed_before(quick_run):
    rows = load(quick_run, "kernels")["rows"]
    assert {(r["family"], r["layout"]) for r in rows} == {
        (family, layout) for family in ("zinb", "nb", "poisson") for layout in ("dense", "csr")
    }
    for row in rows:
        assert row["state"] == "done"
        for direction in ("forward", "both"):
            times = row[direction]["times"]
            assert {"torch", "textbook"} <= set(times)
            for name, entry in times.items():
                found = row["agreement"][name]
                assert found["agrees"]
                assert found["errors"]["nll"]["largest"] <= 1e-4
                assert 0 < entry["q25_ms"] <= entry["median_ms"] <= entry["q75_ms"]
                assert entry["repeats"] >= 5
                rate = row[direction]["bytes"]["least"] / entry["median_ms"] / 1e6
                assert entry["gb_per_s"]["least"] == pytest.approx(rate)


def test_counted_bytes(quick_run):
    rows = {row["key"]: row for row in load(quick_run, "kernels")["rows"]}
    row = rows["zinb dense 16 x 50"]
    matrix = 4 * 16 * 50
    assert row["forward"]["bytes"] == {"least": 3 * matrix, "budget": 4 * matrix}
    assert row["both"]["bytes"] == {"least": 8 * matrix, "budget": 9 * matrix}
    sparse = rows["poisson csr 16 x 50"]
    stored = 8 * round(sparse["density"] * 16 * 50) + 4 * 17
    assert sparse["both"]["bytes"]["least"] == pytest.approx(2 * stored + 3 * matrix)


def test_forms_of_the_first_layer_and_gathered_rows(quick_run):
    rows = {row["key"]: row for row in load(quick_run, "operations")["rows"]}
    layer = rows["first_layer 16 x 60 at 0.1"]
    assert layer["state"] == "done"
    assert all(found["agrees"] for found in layer["agreement"].values())
    times = {name: entry["median_ms"] for name, entry in layer["times"].items()}
    assert set(times) == {"nonzeros", "dense"}
    for dense, over in layer["time_over_best"].items():
        assert over == times[layer["reckoned"][dense]] / min(times.values())
    gather = rows["gather 32 of 2000"]
    assert gather["state"] == "done"
    assert all(gather["agreement"].values())
    assert gather["bytes"]["compact to dense"] == 3 * gather["nnz"] + 4 * 32 * 60
    assert gather["bytes"]["plain to CSR"] == 16 * gather["nnz"]
    for name, entry in gather["times"].items():
        rate = gather["bytes"][name] / entry["median_ms"] / 1e6
        assert entry["gb_per_s"] == pytest.approx(rate)


def test_training_goes_on_without_the_peer(quick_run):
    rows = {row["key"]: row for row in load(quick_run, "training")["rows"]}
    assert rows["fastvae 32"]["cells_per_second"] > 0
    assert rows["profile 32"]["steps"] == 7
    assert len(rows["profile 32"]["top"]) == 15
    for peer in ("scvi-tools 32", "door 32"):
        assert rows[peer]["state"] == "failed"
        assert "no-such-python" in rows[peer]["error"]


def test_tables_come_from_the_files(quick_run, suite, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", f"--table={quick_run}"])
    assert suite.main() == 0
    printed = capsys.readouterr().out
    speed = next(r for r in load(quick_run, "kernels")["rows"] if r["key"].startswith("nb csr"))
    median = 1e3 * speed["both"]["times"]["torch"]["median_ms"]
    from _gpu.tables import number

    assert any(
        line.startswith("| nb | csr | 16 | 50 |") and f"| {number(median)} |" in line
        for line in printed.splitlines()
    )
    assert "scvi-tools 32: failed" in printed
    gather = load(quick_run, "operations")["rows"][-1]
    rate = number(gather["times"]["compact to CSR"]["gb_per_s"])
    assert f"| {rate} |" in next(p for p in printed.splitlines() if "compact to CSR" in p)


def test_a_wrong_contender_is_reported_and_not_timed(suite, tmp_path, monkeypatch):
    from _gpu import kernels
    from _kit.results import Part

    honest = kernels.contenders

    def with_liars(family, backends):
        losses, missing = honest(family, backends)
        right = losses["textbook"]
        losses["off"] = lambda *args: right(*args) * (1 + 1e-3)
        losses["nan"] = lambda *args: right(*args) * float("nan")
        return losses, missing

    monkeypatch.setattr(kernels, "contenders", with_liars)
    monkeypatch.setattr(kernels, "order", lambda sizes: [("nb", "dense", 8, 20)])
    monkeypatch.setattr(kernels, "available_backends", lambda device: {"torch": None})
    part = Part(tmp_path / "kernels.json", 60)
    kernels.run(part, torch.device("cpu"), True, None, 0.0)
    (row,) = load(tmp_path, "kernels")["rows"]
    assert row["state"] == "disagreement"
    assert row["error"].endswith("nan, off")
    assert set(row["both"]["times"]) == {"torch", "textbook"}


def options(out, parts, minutes=9.0):
    return argparse.Namespace(
        out=out, parts=parts, minutes=minutes, quick=True, device="cpu", commit="abc"
    )


def test_a_part_that_dies_leaves_what_was_measured(suite, tmp_path, monkeypatch):
    """The process ends in its second row; it is started again and goes on after that row."""
    from _kit.results import RESTART, Part

    starts = []

    def child(args, name, seconds):
        if name == "device":
            return 0
        starts.append(name)
        part = Part(args.out / f"{name}.json", seconds)
        if name == "tiles":
            raise AssertionError("no time was left for this part")
        part.row("first", lambda row: row.update(value=starts.count(name)))
        if name == "kernels" and starts.count(name) == 1:
            part.rows.append({"key": "second", "state": "running"})
            part.save("running")
            return -11
        part.row("second", lambda row: row.update(value=2))
        if name == "operations":
            return RESTART
        part.row("third", lambda row: row.update(value=1 / 0))
        part.row("fourth", lambda row: row.update(value=4))
        part.save("done")
        return 0

    monkeypatch.setattr(suite, "child", child)
    assert suite.run_all(options(tmp_path, ["bandwidth", "kernels", "operations"])) == 1
    rows = {row["key"]: row for row in load(tmp_path, "kernels")["rows"]}
    assert {k: row["state"] for k, row in rows.items()} == {
        "first": "done",
        "second": "failed",
        "third": "failed",
        "fourth": "done",
    }
    assert rows["first"]["value"] == 1
    assert "ZeroDivisionError" in rows["third"]["error"]
    assert load(tmp_path, "bandwidth")["state"] == "done"
    assert starts.count("operations") == 1 + suite.RESTARTS
    summary = load(tmp_path, "summary")
    assert summary["parts"]["kernels"]["starts"] == 2
    assert summary["parts"]["operations"]["state"] == "failed"
    assert summary["commit"] == "abc"

    assert suite.run_all(options(tmp_path, ["tiles"], minutes=0.01)) == 0
    assert load(tmp_path, "summary")["left_out"] == {"tiles": "no time left"}


def test_a_hanging_row_ends_its_process(tmp_path):
    script = (
        "import sys, time; from pathlib import Path\n"
        "from _kit.results import Part\n"
        "part = Part(Path(sys.argv[1]), 60)\n"
        "part.row('hangs', lambda row: time.sleep(60), limit=0.2)\n"
        "part.row('next', lambda row: None)\n"
        "part.save('done')\n"
    )
    path = tmp_path / "part.json"
    command = [sys.executable, "-c", script, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(BENCH)}
    run = partial(subprocess.run, command, capture_output=True, check=False, env=environment)
    assert run().returncode != 0
    assert load(tmp_path, "part")["rows"] == [{"key": "hangs", "state": "running"}]
    assert run().returncode == 0
    states = {row["key"]: row["state"] for row in load(tmp_path, "part")["rows"]}
    assert states == {"hangs": "failed", "next": "done"}
