"""Every code block of README.md and docs/ runs, or is looked at: see `doc_pages`."""

from __future__ import annotations

import doctest
import inspect
import shutil
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from doc_files import write_files
from doc_pages import MOST_EPOCHS, ROOT, Block, Page, blocks_of, commands_in, lacking, pages

import fastvae
from fastvae import datasets, distributions, functional, nn

PAGES = {str(path.relative_to(ROOT)): path for path in pages()}
BLOCKS = [block for path in PAGES.values() for block in blocks_of(path) if block.kind != "hidden"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def open_page(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    opened: dict[str, Page] = {}

    def open_(name: str) -> Page:
        if name not in opened:
            folder = tmp_path_factory.mktemp("page") / "work"
            shutil.copytree(files, folder)
            opened[name] = Page(PAGES[name], folder)
        return opened[name]

    return open_


@pytest.fixture(autouse=True)
def _short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every training to `MOST_EPOCHS` epochs, whatever the page says."""
    from fastvae.cli import demo
    from fastvae.model.training import Fitting

    fit = Fitting.fit

    @wraps(fit)
    def short(self: Any, max_epochs: int | None = None, *args: Any, **kwargs: Any) -> Any:
        asked = MOST_EPOCHS if max_epochs is None else max_epochs
        return fit(self, min(asked, MOST_EPOCHS), *args, **kwargs)

    monkeypatch.setattr(Fitting, "fit", short)
    monkeypatch.setitem(demo.DEMO_FIT, "max_epochs", MOST_EPOCHS)
    if any(block.needs == "scvi-tools" and lacking(block) is None for block in BLOCKS):
        _shorten_scvi_tools(monkeypatch)


def _shorten_scvi_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    from scvi.train import Trainer

    begin = Trainer.__init__

    @wraps(begin)
    def short(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs["max_epochs"] = min(kwargs.get("max_epochs") or MOST_EPOCHS, MOST_EPOCHS)
        begin(self, *args, **{**kwargs, "enable_progress_bar": False})

    monkeypatch.setattr(Trainer, "__init__", short)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block(block: Block, open_page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if lacking(block):
        pytest.skip(f"needs {block.needs}")
    if block.kind in ("python", "sh"):
        open_page(block.page).run_through(block, monkeypatch)


EXAMPLES = {
    fastvae.Model: "import fastvae, anndata; adata = anndata.read_h5ad('atlas.h5ad')",
    fastvae.VAE: """
import torch
x, batch_index, kl_weight = torch.ones(4, 2000), torch.zeros(4, 1), 0.5
local_l_mean = local_l_var = torch.ones(4, 1)
""",
    fastvae.datasets.simulate: "",
}
"""What the examples in docstrings begin with."""


def examples_of(what: Any) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(recurse=False).find(
        what, globs=dict(vars(inspect.getmodule(what)))
    )
    return [example for example in found if example.examples]


@pytest.mark.parametrize("what", EXAMPLES)
def test_examples_in_docstrings(
    what: Any, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(files, tmp_path / "work"))
    (example,) = examples_of(what)
    exec(EXAMPLES[what], example.globs)
    assert doctest.DocTestRunner().run(example).failed == 0


def test_no_example_in_a_docstring_is_left_out() -> None:
    modules = [fastvae, functional, datasets, distributions, nn]
    public = {getattr(module, name) for module in modules for name in module.__all__} - {*modules}
    assert {what for what in public if examples_of(what)} == {*EXAMPLES}


def page_of(text: str, folder: Path) -> Page:
    path = folder / "page.md"
    path.write_text(text)
    return Page(path, folder)


FAULTS = {
    "an error": ("```python\n1 / 0\n```", ZeroDivisionError),
    "a check that fails": ("```python\nx = 1\n```\n<!-- test:\nassert x == 2\n-->", AssertionError),
    "a name that an earlier block made": ("```python\ny = x\n```", NameError),
    "a command that fails": ("```sh\nfastvae info nowhere.h5ad\n```", AssertionError),
    "an unknown option": ("```sh\nfastvae info page.md --fast\n```", AssertionError),
    "an unknown extra": ('```sh\npip install ".[speed]"\n```', AssertionError),
    "a package of somebody else": ("```sh\npip install notours\n```", AssertionError),
    "a program that is not looked at": ("```sh\nconda create\n```", AssertionError),
    "a script that is not there": ("```sh\npython bench/nothing.py\n```", AssertionError),
    "a code block without language": ("```\nx = 1\n```", ValueError),
    "a block without end": ("```python\nx = 1", ValueError),
    "a marker without block": ("<!-- needs: scvi-tools -->", ValueError),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_page_is_found(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, error = FAULTS[fault]

    def run() -> None:
        page = page_of(text, tmp_path)
        page.run_through(page.blocks[0], monkeypatch)

    with pytest.raises(error):
        run()


def test_pages_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(
        "<!-- test:\nn = 1\n-->\n```python\nn += 1\n```\n```python\nn *= 5\n```", tmp_path
    )
    assert [block.kind for block in page.blocks] == ["hidden", "python", "python"]
    page.run_through(page.blocks[-1], monkeypatch)
    assert page.names["n"] == 10
    words = commands_in("a -b 'c d' && e # f\n# g\nh \\\n  i")
    assert words == [["a", "-b", "c d"], ["e"], ["h", "i"]]
