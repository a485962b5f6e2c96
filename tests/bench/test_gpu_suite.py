"""bench/gpu_suite.py: a whole run at tiny sizes on the CPU, and what it does when a part fails."""

import argparse
import ast
import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from places import BENCH, SUPPORT

PARTS = [  # "tests" would nest pytest
    "smoke",
    "bandwidth",
    "training",
    "kernels",
    "operations",
    "tiles",
    "atlas",
    "inspectors",
]


@pytest.fixture
def suite(monkeypatch):
    import gpu_suite

    return gpu_suite


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("suite")
    command = [sys.executable, str(BENCH / "gpu_suite.py"), f"--out={out}", "--tiny"]
    command += ["--device=cpu", "--compile-seconds=0", f"--parts={','.join(PARTS)}"]
    command += [f"--peer-python={out / 'no-such-python'}", f"--merged={out / 'merged.json'}"]
    # the interpreter, which other tests switch on, would take minutes
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def load(out, part):
    return json.loads((out / f"{part}.json").read_text())


def test_summary_says_what_ran_on_what(tiny_run):
    summary = load(tiny_run, "summary")
    assert list(summary["parts"]) == PARTS
    assert {result["state"] for result in summary["parts"].values()} == {"done"}
    assert summary["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert summary["device"].startswith("CPU")
    assert summary["seconds"] >= sum(p["seconds"] for p in summary["parts"].values()) - 1
    assert summary["left_out"] == {}
    assert not summary["measurement"]
    assert "nothing in here is a measurement" in summary["note"]
    assert any(line.startswith("scvi-tools in") for line in summary["missing"])
    figures = summary["figures"]
    trained = load(tiny_run, "training")["rows"][0]
    assert figures["training fastvae 8, cells/s"] == trained["cells_per_second"] > 0
    assert figures["of configurations"] == 6


def test_one_file_holds_everything(tiny_run):
    merged = load(tiny_run, "merged")
    assert list(merged) == ["summary", *PARTS]
    assert all(merged[name] == load(tiny_run, name) for name in merged)


def test_captured_and_eager_steps_are_compared(tiny_run):
    rows = load(tiny_run, "smoke")["rows"]
    assert len(rows) == 6
    for row in rows:
        assert row["state"] == "done"
        assert row["same_bits"]  # on a CPU both are the plain step
        assert row["off"] == {"losses": 0.0, "weights": 0.0}
        assert row["captured_replays"] == row["eager_replays"] == 0
    assert len({tuple(row["train_elbo"]) for row in rows}) >= 5  # they are different trainings


def test_a_captured_step_that_differs_is_reported(tmp_path, monkeypatch):
    from _gpu import smoke
    from _kit.results import Part

    from fastvae import Model

    fit = Model.fit

    def off(self, *args, cuda_graph, **options):
        options["seed"] += cuda_graph is None
        return fit(self, *args, cuda_graph=cuda_graph, **options)

    monkeypatch.setattr(Model, "fit", off)
    monkeypatch.setattr(smoke, "CONFIGURATIONS", {"zinb": ({}, {})})
    smoke.run(Part(tmp_path / "smoke.json", 60), torch.device("cpu"), True)
    (row,) = load(tmp_path, "smoke")["rows"]
    assert row["state"] == "disagreement"
    assert row["off"]["weights"] > smoke.WEIGHTS


def test_an_atlas_is_gathered_and_trained_on(tiny_run):
    (row,) = load(tiny_run, "atlas")["rows"]
    assert (row["state"], row["cells"]) == ("done", 60)
    for batch, gather in row["gather"].items():
        assert gather["cells_per_second"] == pytest.approx(1e3 * int(batch) / gather["median_ms"])
    assert len(row["epochs"]["seconds"]) == 2
    assert row["epochs"]["train_elbo"][1] < row["epochs"]["train_elbo"][0]
    assert row["epochs"]["not_captured"] == "training is on the CPU"


def test_tools_are_skipped_with_a_line(tiny_run):
    rows = {row["key"]: row for row in load(tiny_run, "inspectors")["rows"]}
    assert rows["ncu"]["state"] == "left out"
    assert rows["ncu"]["error"] == "ncu is not installed"


def test_every_timed_contender_agreed_before(tiny_run):
    rows = load(tiny_run, "kernels")["rows"]
    assert [r["key"] for r in rows if r["gene_set"] == "dense genes"] == [
        "zinb csr 16 x 50, dense genes"
    ]
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


def test_counted_bytes(tiny_run):
    rows = {row["key"]: row for row in load(tiny_run, "kernels")["rows"]}
    row = rows["zinb dense 16 x 50"]
    matrix = 4 * 16 * 50
    assert row["forward"]["bytes"] == {"least": 3 * matrix, "budget": 4 * matrix}
    assert row["both"]["bytes"] == {"least": 8 * matrix, "budget": 9 * matrix}
    sparse = rows["poisson csr 16 x 50"]
    stored = 8 * round(sparse["density"] * 16 * 50) + 4 * 17
    assert sparse["both"]["bytes"]["least"] == pytest.approx(2 * stored + 3 * matrix)


def test_forms_of_the_first_layer_and_gathered_rows(tiny_run):
    rows = {row["key"]: row for row in load(tiny_run, "operations")["rows"]}
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
    assert gather["bytes"]["compact to dense"] == 3 * gather["nnz"] + 8 * 32 * 60
    assert gather["bytes"]["plain to CSR"] == 16 * gather["nnz"]
    for name, entry in gather["times"].items():
        rate = gather["bytes"][name] / entry["median_ms"] / 1e6
        assert entry["gb_per_s"] == pytest.approx(rate)


def test_training_goes_on_without_the_peer(tiny_run):
    rows = {row["key"]: row for row in load(tiny_run, "training")["rows"]}
    assert rows["fastvae 8"]["cells_per_second"] > 0
    assert rows["profile 8"]["steps"] == 2
    assert rows["fastvae 8"]["not_captured"] == "training is on the CPU"
    assert len(rows["profile 8"]["top"]) == 15
    for peer in ("scvi-tools 8", "door 8"):
        assert rows[peer]["state"] == "failed"
        assert "no-such-python" in rows[peer]["error"]


def test_tables_come_from_the_files(tiny_run, suite, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", f"--table={tiny_run}"])
    assert suite.main() == 0
    printed = capsys.readouterr().out
    speed = next(r for r in load(tiny_run, "kernels")["rows"] if r["key"].startswith("nb csr"))
    median = 1e3 * speed["both"]["times"]["torch"]["median_ms"]
    from _gpu.tables import number

    assert any(
        line.startswith("| nb | csr | 16 | 50 | ") and f"| {number(median)} |" in line
        for line in printed.splitlines()
    )
    assert "scvi-tools 8: failed" in printed
    assert "nothing in here is a measurement" in printed
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", f"--table={tiny_run / 'merged.json'}"])
    assert suite.main() == 0
    assert capsys.readouterr().out == printed
    gather = load(tiny_run, "operations")["rows"][-1]
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
    rows = load(tmp_path, "kernels")["rows"]
    assert [row["gene_set"] for row in rows] == ["all genes", "dense genes"]
    for row in rows:
        assert row["state"] == "disagreement"
        assert row["error"].endswith("nan, off")
        assert set(row["both"]["times"]) - {"scvi-tools"} == {"torch", "textbook"}


def options(out, parts, minutes=9.0):
    return argparse.Namespace(
        out=out, merged=None, parts=parts, minutes=minutes, tiny=True, device="cpu", commit="abc"
    )


def test_a_part_that_dies_leaves_what_was_measured(suite, tmp_path, monkeypatch):
    """The process ends in its second row; it is started again and goes on after that row."""
    from _kit.results import RESTART, Part

    starts = []

    def child(args, name, seconds, watch):
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
    assert suite.run_all(options(tmp_path, ["bandwidth", "kernels", "operations"]), []) == 1
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

    assert suite.run_all(options(tmp_path, ["tiles"], minutes=0.01), []) == 0
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


NCU = """\
==PROF== Connected to process 7
every operation ran
"ID","Process ID","Kernel Name","Grid Size","Metric Name","Metric Unit","Metric Value"
"0","7","nll_kernel","(64, 1, 1)","gpu__time_duration.sum","us","12.3"
"0","7","nll_kernel","(64, 1, 1)","dram__bytes_read.sum","Mbyte","1,024"
"1","7","gather_kernel","(32, 1, 1)","gpu__time_duration.sum","us","4.5"
"""


def test_counters_are_read_by_kernel():
    from _gpu.inspectors import counters

    first, second = counters(NCU)
    assert (first["kernel"], first["grid"]) == ("nll_kernel", "(64, 1, 1)")
    assert first["gpu__time_duration.sum"] == "12.3 us"
    assert first["dram__bytes_read.sum"] == "1,024 Mbyte"
    assert (second["kernel"], second["gpu__time_duration.sum"]) == ("gather_kernel", "4.5 us")
    assert counters("==ERROR== no permission") == []


def test_every_operation_runs_once_for_the_tools():
    from _gpu import each_kernel

    each_kernel.run(7, 33, torch.device("cpu"))


def test_every_package_that_the_suite_imports_is_listed():
    from _gpu import needs

    listed = {p.module for p in (*needs.PACKAGES, needs.PEER, *needs.PYTEST_BENCH)}
    ours = {path.stem for path in BENCH.rglob("*.py")} | {
        path.stem for path in SUPPORT.glob("*.py")
    }
    ours |= {"_gpu", "_kit", "lightning", "pytorch_lightning"}  # the last two come with scvi-tools
    used = set()
    for path in [BENCH / "gpu_suite.py", *BENCH.glob("_gpu/*.py"), *BENCH.glob("_kit/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                used.add(node.module.partition(".")[0])
    assert used - ours - set(sys.stdlib_module_names) <= listed


def test_what_is_missing_is_said_before_anything_runs(suite, monkeypatch, capsys, tmp_path):
    from _gpu import needs

    there = needs.installed
    monkeypatch.setattr(needs, "installed", lambda m: m not in ("h5py", "mpmath") and there(m))
    out = tmp_path / "none"
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "--device=cpu", f"--out={out}"])
    assert suite.main() == 2
    printed = capsys.readouterr().out
    assert "missing, nothing can run: package h5py" in printed
    assert "missing, left out: mpmath: the grid of 50 digits" in printed
    assert not out.exists()
    monkeypatch.setattr(needs, "installed", there)
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "--device=cpu", "--check"])
    assert suite.main() == 0
    assert capsys.readouterr().out.endswith("can start\n")


def test_a_package_that_lacks_its_own_needs_is_found(tmp_path, monkeypatch):
    from _gpu import needs

    (tmp_path / "halfway.py").write_text("import no_such_module\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert needs.import_problem(["json"]) is None
    problem = needs.import_problem(["json", "halfway"])
    assert problem == "ModuleNotFoundError: No module named 'no_such_module'"


def test_dense_genes_have_more_large_counts():
    from _kit.problems import make_counts, spread_for, tiles_with_large_counts

    counts = make_counts(300, 1000, 0.2, torch.device("cpu"), spread=spread_for(0.15))
    assert (counts > 0).double().mean().item() == pytest.approx(0.2, abs=0.005)
    assert (counts[counts > 0] > 7).double().mean().item() == pytest.approx(0.15, abs=0.01)
    some = torch.zeros(2, 1000)
    some[0, 600], some[1, 3] = 8.0, 7.0
    assert tiles_with_large_counts(some) == 0.25
