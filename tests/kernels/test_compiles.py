"""Resources of the compiled kernels on three GPU generations, read from the disassembly."""

from __future__ import annotations

import pytest
import sass

REASON = sass.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

FAMILIES = ("ZINB", "NB", "Poisson")
LIKELIHOOD = ("likelihood.forward_kernel", "likelihood.backward_kernel")
# matrices of the size of the counts that one pass of the loop reads and writes
READS = {"ZINB": 3, "NB": 2, "Poisson": 2}
WRITES = {"ZINB": 2, "NB": 1, "Poisson": 1}
BUDGET = {"likelihood.forward_kernel": 120, "likelihood.backward_kernel": 180}


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
@pytest.mark.parametrize("kernel", LIKELIHOOD)
@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_move_in_128_bit_words(reports, target, kernel, family):
    report = reports[target, kernel, family]
    backward = kernel == LIKELIHOOD[1]
    # forward reads the dispersion with each cell, backward keeps it in registers
    theta = 0 if backward or family == "Poisson" else 1
    assert report.loads.get(128) == READS[family] + theta
    assert report.stores == ({128: WRITES[family]} if backward else {})
    assert report.entries == 4  # one word of float32 per thread and pass


def test_the_first_layer_reads_its_weight_in_128_bit_words(reports):
    report = reports[90, "linear.linear_kernel", "sparse, log1p"]
    assert report.entries == 16  # products per thread and pass
    assert report.loads[128] == 4


def test_odd_row_lengths_are_the_only_ones_read_word_by_word(reports):
    for case in ("ZINB, 2001 genes", "ZINB"):
        report = reports[90, LIKELIHOOD[0], case]
        assert (128 in report.loads) == (case == "ZINB")


@pytest.mark.parametrize("kernel", LIKELIHOOD)
@pytest.mark.parametrize("case", ["ZINB", "ZINB, 4096 cells"])
def test_zinb_instructions_per_entry(reports, kernel, case):
    assert reports[90, kernel, case].main <= BUDGET[kernel]


@pytest.mark.parametrize("kernel", LIKELIHOOD)
def test_simpler_families_cost_less(reports, kernel):
    zinb, nb, poisson = (reports[90, kernel, family].main for family in FAMILIES)
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
    assert sass.widths(lines, "LDG") == {128: 1}
    bytewise = ["@P0 LDG.E.U8.CONSTANT R1, [R2]", "LDG.E R1, [R2]"]
    assert sass.widths(bytewise, "LDG") == {32: 1, 8: 1}
