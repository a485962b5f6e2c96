"""bench/report.py: README and docs are what the JSON says; what must not be quoted is refused."""

import json
import shutil
import subprocess
import sys

import pytest
from places import BENCH, ROOT


def whole_history():
    command = ["git", "rev-parse", "--is-shallow-repository"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() == "false"


needs_history = pytest.mark.skipif(
    not whole_history(), reason="no whole git history to look the results' commits up in"
)


@pytest.fixture
def report(monkeypatch):
    import report

    return report


@needs_history
def test_readme_and_docs_say_what_the_results_say():
    command = [sys.executable, str(BENCH / "report.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


ROW = {
    "operation": "likelihood",
    "family": "zinb",
    "layout": "csr",
    "cells": 128,
    "genes": 2000,
    "milliseconds": {"fastvae cpu": 0.5, "scvi-tools": 8.0},
    "ratios": {"fastvae cpu": 1.0, "scvi-tools": 16.0},
    "left_out": {"textbook compiled": "does not compile here: no compiler"},
    "agreement": {"fastvae cpu": {"agrees": True}, "scvi-tools": {"agrees": True}},
}


BLOCKS = ("benchmarks", "numbers", "gpu")


class Checkout:
    """A repository with nothing but pages and results."""

    def __init__(self, root):
        self.root = root
        (root / "bench" / "results").mkdir(parents=True)
        (root / "docs").mkdir()
        blocks = {"README.md": BLOCKS, "docs/benchmarks.md": BLOCKS[:1]}
        for page, names in blocks.items():
            text = "\n".join(f"<!-- {name}:start -->\nold\n<!-- {name}:end -->" for name in names)
            (root / page).write_text(f"before\n{text}\nafter\n")
        self.git("init", "-q", "-b", "main")
        self.commit = self.commit_all()

    def git(self, *command):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", *who, *command], cwd=self.root, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit_all(self):
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "state")
        return self.git("rev-parse", "HEAD")

    def add(self, name, content, committed=True):
        path = self.root / "bench" / "results" / f"{name}.json"
        path.write_text(json.dumps(content))
        if committed:
            self.commit_all()

    def operations(self, **changes):
        environment = {"commit": self.commit, "machine": "x86_64", "versions": {"torch": "2.4"}}
        return {"environment": environment, "threads": 2, "cores": 2, "rows": [{**ROW, **changes}]}


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def run(report, monkeypatch, checkout, *options):
    monkeypatch.setattr(sys, "argv", ["report.py", f"--root={checkout.root}", *options])
    return report.main()


def test_tables_are_written_between_the_markers_and_checked(report, checkout, monkeypatch, capsys):
    checkout.add("operations", checkout.operations())
    assert run(report, monkeypatch, checkout, "--check") == 1
    assert "README.md, docs/benchmarks.md" in capsys.readouterr().err
    assert run(report, monkeypatch, checkout) == 0
    readme, docs = ((checkout.root / p).read_text() for p in ("README.md", "docs/benchmarks.md"))
    for page in (readme, docs):
        assert page.startswith("before\n<!-- benchmarks:start -->")
        assert page.endswith(":end -->\nafter\n")
        assert "old" not in page
        assert "not measured on a GPU" in page
    assert "| 0.500 ms | 8.00 ms | 16.0x | `operations` |" in readme
    assert "| likelihood, zinb csr | 128 x 2,000 | 0.500 | 16.0x |" in docs
    assert "textbook compiled: does not compile here: no compiler" in docs
    assert f"| `operations.json` | `{checkout.commit[:10]}` | x86_64 | 2 | torch 2.4 |" in docs
    assert run(report, monkeypatch, checkout, "--check") == 0
    (checkout.root / "README.md").write_text(readme.replace("16.0x", "61.0x"))
    assert run(report, monkeypatch, checkout, "--check") == 1


def test_the_three_numbers_are_there_with_their_conditions_or_not_at_all(
    report, checkout, monkeypatch
):
    environment = checkout.operations()["environment"]
    contents = {
        "cpu_training_12k_2k": {
            "cells": 12000,
            "genes": 2000,
            "cells_per_second": {"fastvae": 300.0, "scvi-tools": 100.0},
            "every_run": {
                name: [{"cells_per_second": rate, "version": "1.4.2"}]
                for name, rate in (("fastvae", 300.0), ("scvi-tools", 100.0))
            },
        },
        "streaming": {
            "genes": 2000,
            "limit": "500MB",
            "peak": {"cells": 10**6, "peak_mb": 400.0, "cells_per_second": 9.0},
            "steps": {"memory 10": {"speed": 1.0}, "h5ad 10": {"speed": 0.9}},
        },
    }
    for name, content in contents.items():
        checkout.add(name, {"environment": environment, "threads": 2, **content})
    results = report.inputs.load(checkout.root)
    assert report.headlines.three_numbers(results) == ""
    reached = {"seconds": 10.0, "times_sooner": 5.0}
    content = {
        "cells": 900,
        "genes": 70,
        "threads": 2,
        "reached": {"lowest": {"fastvae": reached, "scvi-tools": {"seconds": 50.0}}},
    }
    checkout.add("time_to_quality_pbmc_7sets_10k", {"environment": environment, **content})
    text = report.headlines.three_numbers(report.inputs.load(checkout.root))
    assert text.startswith("| **3.0x** | **5.0x** | **400 MB** |")
    for condition in (
        "12,000 simulated cells x 2,000 genes, defaults, 2 CPU cores",
        "900 blood cells x 70 genes, 10 s instead of 50 s",
        "1,000,000 cells x 2,000 genes streamed from disk with a limit of 500MB",
    ):
        assert condition in text


def test_figures_follow_their_numbers(report, checkout, monkeypatch):
    row = {**ROW, "operation": "training step", "kind": "observed library"}
    row["peak_mb"] = {"fastvae cpu": 10.0, "scvi-tools": 30.0}
    content = {**checkout.operations(), "rows": [row, {**row, "cells": 512}]}
    checkout.add("step", content)
    assert run(report, monkeypatch, checkout) == 0
    drawing = checkout.root / "docs" / "figures" / "throughput_batch_size.svg"
    assert "scvi-tools" in drawing.read_text()
    assert run(report, monkeypatch, checkout, "--check") == 0
    content["rows"][1]["milliseconds"]["scvi-tools"] = 9.0
    checkout.add("step", content)
    before = drawing.read_text()
    assert run(report, monkeypatch, checkout, "--check") == 1
    assert run(report, monkeypatch, checkout) == 0
    assert drawing.read_text() != before
    (checkout.root / "bench" / "results" / "step.json").unlink()
    assert run(report, monkeypatch, checkout) == 0
    assert not drawing.exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c["environment"].pop("commit"), "does not say at which commit"),
        (lambda c: c["environment"].update(commit="0" * 40), "not in the history"),
        (lambda c: c.update(quick=True), "measured with --quick"),
        (
            lambda c: c["rows"][0]["agreement"].update({"scvi-tools": {"agrees": False}}),
            r"rows[0].agreement.scvi-tools disagrees",
        ),
        (
            lambda c: c["rows"][0].update(key="zinb", state="disagreement", error="off"),
            "zinb: disagreement (off)",
        ),
    ],
)
def test_what_must_not_be_quoted_is_refused(report, checkout, monkeypatch, capsys, spoil, message):
    content = json.loads(json.dumps(checkout.operations()))
    spoil(content)
    checkout.add("operations", content)
    before = (checkout.root / "README.md").read_text()
    assert run(report, monkeypatch, checkout) == 2
    assert message in capsys.readouterr().err
    assert (checkout.root / "README.md").read_text() == before


def test_a_commit_of_another_branch_is_refused(report, checkout, monkeypatch, capsys):
    checkout.git("checkout", "-q", "-b", "other")
    (checkout.root / "file").write_text("x")
    other = checkout.commit_all()
    checkout.git("checkout", "-q", "main")
    content = checkout.operations()
    content["environment"]["commit"] = other
    checkout.add("operations", content)
    assert run(report, monkeypatch, checkout) == 2
    assert other[:12] in capsys.readouterr().err


def test_what_is_not_committed_is_not_quoted(report, checkout, monkeypatch):
    checkout.add("operations", checkout.operations(), committed=False)
    assert run(report, monkeypatch, checkout) == 0
    assert "16.0x" not in (checkout.root / "README.md").read_text()


def test_without_history_nothing_is_written(report, checkout, monkeypatch, capsys):
    checkout.add("operations", checkout.operations())
    shutil.rmtree(checkout.root / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(checkout.root.parent))
    assert run(report, monkeypatch, checkout) == 2
    assert "no git checkout" in capsys.readouterr().err


def test_a_page_without_markers_is_said(report, checkout, monkeypatch, capsys):
    checkout.add("operations", checkout.operations())
    (checkout.root / "README.md").write_text("no markers\n")
    assert run(report, monkeypatch, checkout) == 2
    assert "README.md needs one <!-- numbers:start -->" in capsys.readouterr().err
