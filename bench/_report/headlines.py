"""The figures a reader looks for first, each with its file: all of them, and the README's few."""

from __future__ import annotations

from statistics import mean

from _kit.markdown import number, table

from .inputs import Result
from .tables import NO_GPU, OURS, Results, of, operations, row_baseline, speed, times

Line = list[str]


def source(result: Result) -> str:
    return f"`{result.path.stem}`"


def likelihood(results: Results) -> list[Line]:
    result = operations(results)
    if result is None:
        return []
    lines = []
    for row in of(result.content["rows"], family="zinb", layout="csr"):
        ms, ratios = row["milliseconds"], row["ratios"]
        peers = [n for n in ("scvi-tools", "scvi-tools compiled") if n in ms]
        what = f"ZINB likelihood with gradients, {row['cells']:,} x {row['genes']:,}, sparse counts"
        lines.append(
            [
                what,
                f"{number(ms[OURS])} ms",
                "; ".join(
                    f"{n.removeprefix('scvi-tools ')} {number(ms[n])} ms" for n in peers
                ).replace("scvi-tools ", "")
                or "-",
                "; ".join(times(ratios[n]) for n in peers) or "-",
                source(result),
            ]
        )
    return lines


def step(results: Results) -> list[Line]:
    result = results.get("step")
    if result is None:
        return []
    lines = []
    for row in of(result.content["rows"], family="zinb"):
        ms, ours = row["milliseconds"], row_baseline(result.content["rows"])
        if row["cells"] != 128 or ours not in ms or "scvi-tools" not in ms:
            continue
        what = f"Training step, {row['cells']:,} cells x {row['genes']:,} genes"
        line = [what, f"{number(ms[ours])} ms", f"{number(ms['scvi-tools'])} ms"]
        lines.append([*line, times(row["ratios"]["scvi-tools"]), source(result)])
    return lines


def training(results: Results) -> list[Line]:
    lines = []
    for name, result in results.items():
        if name.startswith("cpu_training"):
            found = result.content
            rate = found["cells_per_second"]
            what = f"Training, {found['cells']:,} cells x {found['genes']:,} genes, defaults"
            pair = [f"{speed(rate[k])} cells/s" for k in ("fastvae", "scvi-tools")]
            ratio = times(rate["fastvae"] / rate["scvi-tools"])
            lines.append([what, *pair, ratio, source(result)])
    if door := results.get("scvi_tools_door"):
        for row in door.content["rows"]:
            rate = row["cells_per_second"]
            what = f"`model.train` through `integrations.scvi_tools`, {row['shape']}"
            pair = [f"{speed(rate[k])} cells/s" for k in ("ours", "theirs")]
            lines.append([what.replace("x", " x "), *pair, times(row["ratio"]), source(door)])
    return lines


def loading(results: Results) -> list[Line]:
    """From memory beside scvi-tools' loader, from disk beside annbatch."""
    result = results.get("loading")
    if result is None:
        return []
    lines = []
    for genes, loaders in result.content["times"].items():
        rate = {name: {k: 128e3 / ms for k, ms in of.items()} for name, of in loaders.items()}
        dense, sparse = (rate.get(f"AnnDataLoader {kind}") for kind in ("dense", "sparse"))
        if dense and sparse:
            ours = rate["fastvae memory"]["128"]
            lines.append(
                [
                    f"Loading from memory, {int(genes):,} genes, minibatches of 128",
                    f"{speed(ours)} cells/s",
                    f"{speed(dense['128'])} cells/s; sparse {speed(sparse['128'])}",
                    f"{times(ours / dense['128'])}; {times(ours / sparse['128'])}",
                    source(result),
                ]
            )
        if peer := rate.get("annbatch"):
            ours = rate["fastvae zarr"]["4096"]
            lines.append(
                [
                    f"Loading zarr from disk, {int(genes):,} genes, minibatches of 4,096",
                    f"{speed(ours)} cells/s",
                    f"annbatch {speed(peer['4096'])} cells/s",
                    times(ours / peer["4096"]),
                    source(result),
                ]
            )
    return lines


def streaming(results: Results) -> list[Line]:
    lines = []
    if result := results.get("streaming"):
        peak = result.content["peak"]
        largest = [k for k in result.content["steps"] if k.startswith("h5ad")][-1]
        share = result.content["steps"][largest]["speed"]
        what = f"Peak memory, {peak['cells']:,} cells streamed with a limit of "
        what += f"{result.content['limit']}; speed relative to memory"
        lines.append([what, f"{peak['peak_mb']:.0f} MB; {share:.2f}", "-", "-", source(result)])
    return lines


def quality(results: Results) -> list[Line]:
    lines = []
    for name, result in results.items():
        found = result.content
        if name.startswith("time_to_quality"):
            reached = found["reached"]["lowest"]
            theirs = f"{reached['scvi-tools']['seconds']:.0f} s"
            size = f"{found['cells']:,} x {found['genes']:,}"
            for system, entry in reached.items():
                if system == "scvi-tools":
                    continue
                rate = system.removeprefix("fastvae").lstrip(", ") or "same learning rate"
                what = f"Until scvi-tools' lowest validation ELBO of {found['epochs']} epochs, "
                seconds = entry["seconds"]
                ours = f"{seconds:.0f} s" if seconds else "not reached"
                sooner = times(entry["times_sooner"])
                lines.append([f"{what}{size}, {rate}", ours, theirs, sooner, source(result)])
        if name.startswith("integration"):
            rows = of(found["rows"], k=15)
            values = {
                system: [
                    mean(row[figure] for row in of(rows, system=system))
                    for figure in ("same_batch_share", "label_accuracy")
                ]
                for system in ("fastvae", "scvi-tools")
            }
            what = "Neighbours from the same batch (chance "
            what += f"{found['chance']:.3f}); labels right, {found['cells']:,} cells"
            pair = ["{:.3f}; {:.3f}".format(*values[k]) for k in values]
            lines.append([what, *pair, "-", source(result)])
    return lines


def accuracy(results: Results) -> list[Line]:
    result = results.get("accuracy")
    if result is None:
        return []
    lines = []
    for theta in (1e2, 1e5, 1e8):
        worst = {}
        for row in of(result.content["rows"], family="nb", dtype="float32"):
            at = [round(t, 9) for t in row["theta"]].index(theta)
            worst[row["provider"]] = row["errors"]["log_p"][at]
        errors = {k: f"{v:.1e}" for k, v in worst.items() if v is not None}
        what = f"Largest error of log NB at theta = {theta:.0e}, float32"
        theirs = errors.get("scvi-tools", "-")
        lines.append([what, errors[OURS], theirs, "-", source(result)])
    return lines


def render(results: Results, gpu: list[str]) -> str:
    """All of them as a table; `gpu` names the runs on GPUs, of which the details are below it."""
    lines = [
        line
        for part in (likelihood, step, training, loading, streaming, quality, accuracy)
        for line in part(results)
    ]
    measured = "; ".join(gpu) or NO_GPU
    lines.append(["The same on a GPU", measured, "-" if gpu else NO_GPU, "-", "-"])
    return table(head(results), lines)


def head(results: Results) -> Line:
    cores = next((c for r in results.values() if (c := r.content.get("cores"))), None)
    where = "CPU" + (f", {cores} cores" if cores else "")
    return [where, "fastvae", peer(results), "ratio", "file"]


OF_OTHER_VERSIONS = ("scvi_tools_models", "peer_tests")
"""Results that no headline quotes, of releases of scvi-tools that they name themselves."""


def peer(results: Results) -> str:
    quoted = [r for name, r in results.items() if not name.startswith(OF_OTHER_VERSIONS)]
    versions = {v for r in quoted if (v := r.versions().get("scvi-tools"))}
    return f"scvi-tools {', '.join(sorted(versions))}".strip()


def six_rows(results: Results) -> str:
    """The README's table: one row for each question of a newcomer."""
    sooner = [line for line in quality(results) if line[0].startswith("Until")]
    lines = [*likelihood(results)[:1], *training(results)[:3], *sooner[:1], *streaming(results)]
    return table(head(results), lines)


def three_numbers(results: Results) -> str:
    """What a reader may remember, each with its conditions; "" where one was not measured."""
    trained = results.get("cpu_training_12k_2k")
    reached = results.get("time_to_quality_pbmc_7sets_10k")
    streamed = results.get("streaming")
    if trained is None or reached is None or streamed is None:
        return ""
    rate = trained.content["cells_per_second"]
    best = reached.content["reached"]["lowest"]
    peak = streamed.content["peak"]
    numbers = [
        times(rate["fastvae"] / rate["scvi-tools"]),
        times(best["fastvae"]["times_sooner"]),
        f"{peak['peak_mb']:.0f} MB",
    ]
    conditions = [
        f"the cells per second of {peer(results)} in training: {trained.content['cells']:,} "
        f"simulated cells x {trained.content['genes']:,} genes, defaults, "
        f"{trained.content['threads']} CPU cores",
        f"sooner at scvi-tools' lowest validation ELBO: {reached.content['cells']:,} blood cells x "
        f"{reached.content['genes']:,} genes, {best['fastvae']['seconds']:.0f} s instead of "
        f"{best['scvi-tools']['seconds']:.0f} s, {reached.content['threads']} CPU cores",
        f"peak memory, beyond the imports, to train on {peak['cells']:,} cells x "
        f"{streamed.content['genes']:,} genes streamed from disk with a limit of "
        f"{streamed.content['limit']}",
    ]
    return table([f"**{figure}**" for figure in numbers], [conditions])


def gpu_status(gpu: list[str]) -> str:
    """The README's line on GPUs."""
    if gpu:
        return f"- GPU: {'; '.join(gpu)}."
    return f"- GPU: {NO_GPU}, nor run on one; `python bench/gpu_suite.py --out DIR` does both."
