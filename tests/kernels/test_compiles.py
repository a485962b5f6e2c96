"""Resources of the compiled kernels on three GPU generations, read from the disassembly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sass
from sass import on_real_data

ROOT = Path(__file__).resolve().parents[2]

REASON = sass.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

FAMILIES = ("ZINB", "NB", "Poisson")
KERNEL = "likelihood.nll_kernel"
# matrices of the size of the counts that the sweep reads and writes; the dispersion and the column
# of its gradients are rows that are read with each cell
READS = {"ZINB": 3, "NB": 2, "Poisson": 2}
WRITES = {"ZINB": 2, "NB": 1, "Poisson": 1}
SHARES = json.loads((ROOT / "tests" / "support" / "count_shares.json").read_text())["rows"]
# instructions per entry: all loops over genes, and with the lists of counts above 1 of real data
BUDGET = {"ZINB": 110, "ZINB, 4096 cells": 110, "ZINB, value": 80}
SWEEP = 90
ON_REAL_DATA = {"2000 over-dispersed genes": 165, "all genes": 130}


@pytest.fixture(scope="session")
def reports():
    """All variants for sm_90; for the other targets the ones of the model's defaults."""
    _, found = sass.compile_all({target: target != 90 for target in sass.TARGETS})
    return {(r.target, r.kernel, r.case): r for r in found}


@pytest.mark.parametrize("target", sass.TARGETS)
def test_nothing_goes_to_local_memory(reports, target):
    chosen = [r for r in reports.values() if r.target == target]
    assert {r.case for r in chosen} >= set(FAMILIES)
    spilled = {f"{r.kernel}, {r.case}": (r.stack, r.local) for r in chosen if r.stack or r.local}
    assert not spilled


@pytest.mark.parametrize("target", sass.TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_move_in_128_bit_words(reports, target, family):
    report = reports[target, KERNEL, family]
    of_theta = 0 if family == "Poisson" else 1
    assert report.loads == {128: READS[family] + 2 * of_theta}
    assert report.stores == {128: WRITES[family] + of_theta}
    assert report.entries == 4  # one word of float32 per thread and pass


def test_the_first_layer_reads_its_weight_in_128_bit_words(reports):
    report = reports[90, "linear.linear_kernel", "sparse, log1p"]
    assert report.entries == 16  # products per thread and pass
    assert report.loads[128] == 4


def test_odd_row_lengths_are_the_only_ones_read_word_by_word(reports):
    for case in ("ZINB, 2001 genes", "ZINB"):
        report = reports[90, KERNEL, case]
        assert (128 in report.loads) == (case == "ZINB")


@pytest.mark.parametrize("case", BUDGET)
def test_zinb_instructions_per_entry(reports, case):
    assert reports[90, KERNEL, case].main <= BUDGET[case]
    assert reports[90, KERNEL, case].parts["sweep"] <= SWEEP


@pytest.mark.parametrize("share", SHARES, ids=lambda s: f"{s['data']}, {s['selection']}")
def test_zinb_instructions_per_entry_of_real_counts(reports, share):
    assert (
        on_real_data(reports[90, KERNEL, "ZINB, 4096 cells"], share)
        <= ON_REAL_DATA[share["selection"]]
    )


def test_eight_programs_fit_on_a_multiprocessor(reports):
    report = reports[90, KERNEL, "ZINB, 4096 cells"]
    assert report.registers <= 64
    assert report.warps == 4


def test_simpler_families_cost_less(reports):
    zinb, nb, poisson = (reports[90, KERNEL, family].main for family in FAMILIES)
    assert poisson < nb < zinb


def test_counting_of_a_known_listing():
    code = ["MOV R1, c[0x0][0x28]", ".L_x_1:", "@!P0 LDG.E.128 R4, [R2.64]", "MUFU.EX2 R5, R4"]
    code += ["@P1 BRA `(.L_x_2)", *["FFMA R6, R5, R5, R6"] * 120, ".L_x_2:"]
    code += ["@P2 BRA `(.L_x_1)", "@P0 STL [R1], R6", "EXIT", ".L_x_3:", "BRA `(.L_x_3)", "NOP"]
    listing = "\n".join(c if c.endswith(":") else f"    /*0000*/  {c} ;" for c in code)
    lines, labels = sass.instructions(listing)
    main, rare = sass.main_and_rare(lines, labels, looped=True)
    assert [sass.operation(line) for line in main] == ["LDG.E.128", "MUFU.EX2", "BRA", "BRA"]
    assert len(rare) == 120
    assert [len(loop) for loop in sass.innermost_loops(lines, labels)] == [124]
    assert sass.widths(lines, "LDG") == {128: 1}
    bytewise = ["@P0 LDG.E.U8.CONSTANT R1, [R2]", "LDG.E R1, [R2]"]
    assert sass.widths(bytewise, "LDG") == {32: 1, 8: 1}
