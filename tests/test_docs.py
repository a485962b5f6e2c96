"""Every code block of README.md and docs/ runs, or is looked at: see `doc_pages`."""

from __future__ import annotations

import shutil
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from doc_files import write_files
from doc_pages import MOST_EPOCHS, ROOT, Block, Page, blocks_of, commands_in, lacking, pages

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
    from fastvae._cli import demo
    from fastvae._model.fitting import Fitting

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
@pytest.mark.filterwarnings("ignore::Warning:(?!fastvae)")
def test_block(block: Block, open_page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if lacking(block):
        pytest.skip(f"needs {block.needs}")
    if block.kind in ("python", "sh"):
        open_page(block.page).run_through(block, monkeypatch)


def test_the_reader_of_pages_sees_what_is_wrong(tmp_path: Path) -> None:
    page = ROOT / "README.md"
    assert any(block.kind == "sh" for block in blocks_of(page))
    assert commands_in("a -b 'c d' && e # f\n# g\nh \\\n  i") == [
        ["a", "-b", "c d"],
        ["e"],
        ["h", "i"],
    ]
