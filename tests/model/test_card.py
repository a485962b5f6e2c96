"""The model card: what is in it, what names cannot do in it, and whose it is."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from small_models import small_data

from fastvae import InputError, Model
from fastvae.model.card import card_text, escaped

DATA = small_data()
ODD = [
    "a|b",
    "<script>alert(1)</script>",
    "[x](https://example.org)",
    "https://example.org/a",
    "![x](y.png)",
    "`code` **bold** _it_ ~~no~~",
    "two\nlines\r\n| and | cells",
    "&lt; &amp;",
    "\\",
    "\x1b[31mred\u202e",
]


def rendered(text: str) -> list:
    """Return the tokens of the text after the front matter."""
    front, body = text.split("---\n", 2)[1:]
    assert front.splitlines()[:2] == ["library_name: fastvae-scvi", "license: unknown"]
    return MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)


def rows(text: str) -> dict[str, str]:
    tokens = rendered(text)
    cells = [
        "".join(part.content for part in token.children)
        for before, token in pairwise(tokens)
        if before.type == "td_open"
    ]
    return dict(zip(cells[::2], cells[1::2], strict=True))


@pytest.fixture(scope="module")
def model() -> Model:
    made = Model(DATA, batch_key="batch", n_latent=3, n_hidden=8)
    return made.fit(2, batch_size=32, seed=5, progress=False, device="cpu")


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_what_is_in_it(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path)
    found = rows((tmp_path / "README.md").read_text(encoding="utf-8"))
    assert found["genes"].startswith("30: ")
    assert found["cells"] == "120"
    assert found["counts"] == "layer X"
    assert found["batch"] == "obs['batch']: 2 categories"
    assert found["n_latent"] == "3"
    assert found["epochs"] == f"2 ({model.training['ending']})"
    assert found["seed"] == "5"
    assert found["negative ELBO, validation"] == f"{model.training['validation_elbo']:.2f} per cell"
    assert found["batch_size"] == "32"
    assert {"fastvae", "torch", "Python"} <= set(found)


def test_untrained(tmp_path: Path) -> None:
    Model(DATA, n_hidden=8).save(tmp_path)
    assert rows((tmp_path / "README.md").read_text())["trained"] == "no"


@pytest.mark.parametrize("name", ODD)
def test_names_show_as_they_are(model: Model, tmp_path: Path, name: str) -> None:
    model.save(tmp_path)
    config = config_of(tmp_path)
    config["data"]["gene_names"][0] = name
    config["data"]["batch_key"] = name
    text = card_text(config)
    inline = [child.type for token in rendered(text) for child in token.children or ()]
    assert set(inline) <= {"text", "text_special", "softbreak", "code_inline", "html_inline"}
    assert inline.count("html_inline") == 0
    assert inline.count("code_inline") == 1  # license:
    assert [token.type for token in rendered(text)].count("html_block") == 1  # who wrote it
    shown = " ".join(name.split()).replace("\x1b", "\ufffd").replace("\u202e", "\ufffd")
    assert rows(text)["genes"].startswith(f"30: {shown}, ")


def test_a_long_name_is_cut() -> None:
    assert escaped("g" * 10_000) == "g" * 80 + "..."


def test_an_own_card_is_kept(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path)
    card = tmp_path / "README.md"
    first = card.read_text()
    card.write_text(first + "more")
    model.save(tmp_path, overwrite=True)
    assert card.read_text() == first, "a card that fastvae wrote is written again"
    own = "".join(line for line in first.splitlines(True) if "<!--" not in line)
    own = own.replace("license: unknown", "license: cc-by-4.0")
    card.write_text(own)
    model.save(tmp_path, overwrite=True)
    assert card.read_text() == own


def test_a_folder_synchronised_from_a_hub_loads(model: Model, tmp_path: Path) -> None:
    """Files are links into a store of contents, beside files of the hub's own."""
    model.save(tmp_path / "saved")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "saved").iterdir())):
        path.replace(blobs / str(number))
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    (snapshot / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (snapshot / ".cache" / "huggingface").mkdir(parents=True)
    found = Model.load(snapshot, DATA, device="cpu")
    np.testing.assert_array_equal(
        found.get_latent_representation(), model.get_latent_representation()
    )


def test_weights_that_were_not_fetched_are_named(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "model.safetensors").write_bytes(pointer)
    with pytest.raises(InputError, match="fetch it with git lfs pull"):
        Model.load(tmp_path)
