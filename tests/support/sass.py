"""What the machine code of the kernels costs, from the disassembly; no GPU is needed.

Compilation runs in one process per target, without TRITON_INTERPRET, whatever the caller has set:
triton reads it once, on import. ``python sass.py TARGET [core]`` is that process.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sass_variants import Launch

TARGETS = (80, 90, 100)
RARE_SKIP = 100
"""A forward branch over more instructions than this skips a part that few tiles need."""


@dataclasses.dataclass
class Report:
    """Costs of one compiled kernel.

    ``main`` and ``rare`` are instructions per entry of the longest loop (of the whole kernel where
    it has none), without and within the parts that branches skip; every copy that ptxas makes of
    a loop it unrolls counts. ``mufu`` counts the special-function ones of ``main``. ``loads`` and
    ``stores`` are the global ones of ``main`` by width in bits.

    The likelihood kernel has one loop after the other. ``parts`` has the instructions of each: per
    entry in those over all genes, which are ``main`` together, and per pass over a list in the
    others, which are ``rare``. ``loads`` and ``stores`` are those of the sweep.
    """

    case: str
    kernel: str
    target: int
    warps: int
    entries: int
    core: bool
    registers: int
    stack: int
    local: int
    main: float
    rare: float
    mufu: float
    loads: dict[int, int]
    stores: dict[int, int]
    parts: dict[str, float]


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if importlib.util.find_spec("triton.backends.nvidia") is None:
        return "this triton has no nvidia backend"
    return None


# -- the machine code -----------------------------------------------------------------------------

PREDICATE = re.compile(r"^@!?U?P\w+\s+")
LABEL = re.compile(r"^(\.L_\w+):")
INSTRUCTION = re.compile(r"^/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
JUMP = re.compile(r"\bBRA\b.*`\((\.L_\w+)\)")


def instructions(text: str) -> tuple[list[str], dict[str, int]]:
    """Instructions of a disassembly, and the index each label stands before."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for line in map(str.strip, text.splitlines()):
        if label := LABEL.match(line):
            labels[label[1]] = len(lines)
        elif instruction := INSTRUCTION.match(line):
            lines.append(instruction[1])
    return lines, labels


def operation(instruction: str) -> str:
    """``LDG.E.128`` of ``@P0 LDG.E.128 R4, ...``."""
    return PREDICATE.sub("", instruction).split()[0]


def main_and_rare(
    lines: list[str], labels: dict[str, int], looped: bool
) -> tuple[list[str], list[str]]:
    """Instructions of the longest loop, or of all: those of every pass, those branches skip."""
    jumps = [(i, labels[j[1]]) for i, line in enumerate(lines) if (j := JUMP.search(line))]
    # Code ends in a jump to itself, and padding follows.
    end = next((at for at, to in jumps if to == at), len(lines))
    first, last = 0, end
    if looped:
        loops = [(to, at + 1) for at, to in jumps if to < at < end]
        first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    rare: set[int] = set()
    for at, to in jumps:
        if first <= at < to <= last and to - at > RARE_SKIP:
            rare |= set(range(at + 1, to))
    inside = range(first, last)
    return [lines[i] for i in inside if i not in rare], [lines[i] for i in inside if i in rare]


def innermost_loops(lines: list[str], labels: dict[str, int]) -> list[list[str]]:
    """Instructions of every loop that has no other inside, in the order of the code."""
    jumps = [(i, labels[j[1]]) for i, line in enumerate(lines) if (j := JUMP.search(line))]
    loops = sorted({(to, at + 1) for at, to in jumps if to < at})
    return [
        lines[first:last]
        for first, last in loops
        if not any(
            (first, last) != (begin, end) and first <= begin and end <= last for begin, end in loops
        )
    ]


def parts_of(launch: Launch, lines: list[str], labels: dict[str, int]) -> dict[str, list[str]]:
    """The loops of the likelihood kernel by name."""
    loops = innermost_loops(lines, labels)
    if len(loops) != len(launch.bits):
        raise RuntimeError(
            f"{launch.kernel}, {launch.case} has {len(loops)} loops; expected {list(launch.bits)}"
        )
    return dict(zip(launch.bits, loops, strict=True))


def entries_of(launch: Launch, part: str, loop: list[str]) -> float:
    """Entries that a thread takes in one pass, by what it reads; 1 for a pass over a list."""
    read = sum(width * number for width, number in widths(loop, "LDG").items())
    return read / launch.bits[part] if launch.bits[part] else 1.0


def on_real_data(report: Report, share: dict[str, Any]) -> float:
    """Instructions per entry of the likelihood kernel with the lists that real counts make.

    `share` is a row of tests/support/count_shares.json. The lists cost a program the same for each
    cell, whatever the number of genes that a thread of it has. What lies between the loops, sums
    over a program above all, is not counted.
    """
    passes = share["passes"][str(report.warps)]
    lists = passes["listing"] * report.parts["listing"]
    lists += passes["small"] * report.parts["small counts"]
    lists += passes["large"] * report.parts["large counts"]
    return report.main + lists / (share["genes"] / (32 * report.warps))


def widths(lines: list[str], kind: str) -> dict[int, int]:
    """Global accesses by width in bits."""
    found: Counter[int] = Counter()
    for name in map(operation, lines):
        if name.split(".")[0] == kind:
            sizes = [p.strip("USB") for p in name.split(".")]
            found[next((int(p) for p in sizes if p in ("8", "16", "64", "128", "256")), 32)] += 1
    return dict(sorted(found.items(), reverse=True))


def _tool(name: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run(
        [str(path), *arguments], capture_output=True, text=True, check=True
    ).stdout


def measure(launch: Launch, target: int) -> Report:
    """Compile one launch and take its machine code apart."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=launch.function,
        signature=launch.signature,
        constexprs=launch.constants,
        attrs=launch.attributes,
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=launch.options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        text = _tool("nvdisasm", "-c", str(cubin))
        resources = _tool("cuobjdump", "-res-usage", str(cubin))
    usage = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", resources)}
    lines, labels = instructions(text)
    parts = {}
    if launch.bits:
        loops = parts_of(launch, lines, labels)
        per_pass = {name: entries_of(launch, name, loop) for name, loop in loops.items()}
        parts = {name: len(loop) / per_pass[name] for name, loop in loops.items()}
        whole = [name for name in loops if launch.bits[name]]
        main_count = sum(parts[name] for name in whole)
        rare_count = sum(parts.values()) - main_count
        mufu = sum(
            sum(operation(line).startswith("MUFU") for line in loops[name]) / per_pass[name]
            for name in whole
        )
        main = loops["sweep"]
    else:
        main, rare = main_and_rare(lines, labels, launch.looped)
        main_count, rare_count = len(main) / launch.entries, len(rare) / launch.entries
        mufu = sum(operation(line).startswith("MUFU") for line in main) / launch.entries
    kinds = Counter(operation(line).split(".")[0] for line in lines)
    return Report(
        case=launch.case,
        kernel=launch.kernel,
        target=target,
        warps=launch.options["num_warps"],
        entries=launch.entries,
        core=launch.core,
        registers=usage["REG"],
        stack=usage["STACK"],
        local=usage["LOCAL"] + kinds["LDL"] + kinds["STL"],
        main=main_count,
        rare=rare_count,
        mufu=mufu,
        loads=widths(main, "LDG"),
        stores=widths(main, "STG"),
        parts=parts,
    )


# -- one process per target -----------------------------------------------------------------------


def _worker(target: int, core_only: bool) -> dict[str, Any]:
    import triton
    from fastvae.kernels.likelihood import gpu
    from sass_variants import launches

    gpu._generation = lambda device: target // 10  # type: ignore[assignment]
    found = [measure(launch, target) for launch in launches(core_only=core_only)]
    return {"triton": triton.__version__, "reports": [dataclasses.asdict(r) for r in found]}


def _compile_target(target: int, core_only: bool, folder: str) -> dict[str, Any]:
    out = Path(folder) / f"{target}.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONWARNINGS": "default"}
    command = [sys.executable, __file__, str(target), str(out), *(["core"] if core_only else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"compiling for sm_{target} failed:\n{done.stderr[-4000:]}")
    answer = json.loads(out.read_text())
    for report in answer["reports"]:
        for kind in ("loads", "stores"):
            report[kind] = {int(width): number for width, number in report[kind].items()}
    return answer


def compile_all(core_only: dict[int, bool]) -> tuple[str, list[Report]]:
    """Triton's version and the reports of each target; True asks for its core cases only."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        ThreadPoolExecutor() as pool,
    ):
        waiting = [pool.submit(_compile_target, t, core, folder) for t, core in core_only.items()]
        answers = [future.result() for future in waiting]
    reports = [Report(**report) for answer in answers for report in answer["reports"]]
    return answers[0]["triton"], reports


if __name__ == "__main__":
    answer = _worker(int(sys.argv[1]), "core" in sys.argv[3:])
    Path(sys.argv[2]).write_text(json.dumps(answer))
