"""The model card of a saved model: README.md, as hubs of models and code hosts show it."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from typing import Any

import torch

from ..data.keys import in_words

CARD = "README.md"
_WRITTEN = "<!-- Written by fastvae at each save; without this line it is left as it is. -->"
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
_MOST_CHARACTERS = 80


def is_written(content: bytes) -> bool:
    """Return whether a README is a card as `card_text` wrote it, which may be replaced."""
    return _WRITTEN.encode() in content


def card_text(config: Mapping[str, Any]) -> str:
    """Return the card of the model that `config`, the content of config.json, describes.

    Names of columns and genes are shown as they are: nothing in them acts as Markdown or HTML.
    Names of batches and labels, which may be those of donors, are counted only.
    """
    genes = config["data"]["gene_names"]
    return "\n".join(
        [
            "---",
            "library_name: fastvae-scvi",
            "license: unknown",
            "tags:",
            *(f"- {tag}" for tag in ("biology", "single-cell", "scRNA-seq", "scvi")),
            "---",
            _WRITTEN,
            "",
            f"# scVI model of {len(genes):,} genes",
            "",
            "A variational autoencoder of single-cell counts (Lopez et al. 2018), made by fastvae.",
            "",
            *_section("Data", _data(config)),
            *_section("Network", config["options"]),
            *_section("Training", _training(config)),
            *_section("Versions", _versions(config)),
            "## Licence",
            "",
            "Not stated. Write that of the weights after `license:` at the top and remove the",
            "line below it that says who wrote this file.",
            "",
            "## Use",
            "",
            "```python",
            "from fastvae import Model",
            "",
            'model = Model.load("FOLDER", adata)  # this folder; adata has the genes in raw counts',
            "latent = model.get_latent_representation()",
            "```",
            "",
        ]
    )


def escaped(value: object) -> str:
    """Return text for a cell of a Markdown table that shows as it is, in one line."""
    text = " ".join(str(value).split())
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}..."
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return _PUNCTUATION.sub(_as_character, text)


def _as_character(match: re.Match[str]) -> str:
    char = match[0]
    return char if char in ".,-()" else f"&#{ord(char)};" if char in "&<>|" else f"\\{char}"


def _section(title: str, rows: Mapping[str, object]) -> list[str]:
    lines = [f"| {escaped(name)} | {escaped(value)} |" for name, value in rows.items()]
    return [f"## {title}", "", "| | |", "|---|---|", *lines, ""] if lines else []


def _data(config: Mapping[str, Any]) -> dict[str, object]:
    data, slot, covariates = config["data"], config["slot"], config.get("covariates", {})
    genes = data["gene_names"]
    rows: dict[str, object] = {"genes": f"{len(genes):,}: {', '.join(genes[:5])}, ..."}
    if config["training"]:
        rows["cells"] = f"{config['training']['n_cells']:,}"
    rows["counts"] = "raw.X" if slot["use_raw"] else f"layer {slot['layer'] or 'X'}"
    for what, categories in (("batch", "batch_categories"), ("labels", "label_categories")):
        key = data[f"{what}_key"]
        if key is not None:
            rows[what] = f"{in_words(key)}: {len(data[categories]):,} categories"
    for kind in ("categorical", "continuous"):
        keys = covariates.get(kind)
        if keys:
            rows[f"{kind} covariates"] = ", ".join(map(in_words, keys))
    if covariates.get("size_factor") is not None:
        rows["size factor"] = in_words(covariates["size_factor"])
    return rows


def _training(config: Mapping[str, Any]) -> dict[str, object]:
    done = config["training"]
    if not done:
        return {"trained": "by other means" if config["is_trained"] else "no"}
    settings = done["settings"]
    rows = {"epochs": f"{done['epochs']:,} ({done['ending']})", "seed": done["seed"]}
    for name in ("train_elbo", "validation_elbo"):
        if done[name] is not None:
            rows[f"negative ELBO, {name.removesuffix('_elbo')}"] = f"{done[name]:.2f} per cell"
    for name in ("batch_size", "learning_rate", "train_size", "precision"):
        rows[name] = settings[name]
    return rows


def _versions(config: Mapping[str, Any]) -> dict[str, object]:
    return {
        "fastvae": config["fastvae_version"],
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
