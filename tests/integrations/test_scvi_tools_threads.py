"""The number of threads under Lightning: watched while training on a CPU, and given back."""

import pytest
import torch

scvi = pytest.importorskip("scvi")
from scvi_native import adata  # noqa: E402

from fastvae.integrations import scvi_tools as door  # noqa: E402
from fastvae.integrations.scvi_tools import _watched_threads  # noqa: E402
from fastvae.train.thread_watch import ThreadWatch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["adata"]  # a fixture


@pytest.mark.parametrize("ends", ["finished", "raised"])
def test_a_crowded_machine_trains_with_fewer_threads(adata, monkeypatch, caplog, ends):
    before, seen = torch.get_num_threads(), []
    clock = {"now": 0.0}

    class Crowded(ThreadWatch):
        def __init__(self, active, say):
            assert active
            torch.set_num_threads(2)
            now = lambda: clock["now"]  # noqa: E731 - all of the time goes by without a processor
            super().__init__(active, say, clock=now, waited=now)

        def after_step(self):
            clock["now"] += 0.01 if torch.get_num_threads() == 1 else 0.2
            super().after_step()
            seen.append(torch.get_num_threads())
            if ends == "raised" and len(seen) == 10:
                raise RuntimeError("enough")

    monkeypatch.setattr(_watched_threads, "ThreadWatch", Crowded)
    data = adata.copy()
    door.SCVI.setup_anndata(data)
    model = door.SCVI(data, n_hidden=16)
    options = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 16}
    try:
        if ends == "raised":
            with pytest.raises(RuntimeError, match="enough"):
                model.train(max_epochs=20, **options)
        else:
            model.train(max_epochs=20, **options)
        assert 1 in seen
        assert torch.get_num_threads() == 2, "as before training"
    finally:
        torch.set_num_threads(before)
    if ends == "finished":
        assert [r.message for r in caplog.records if "1 of 2 threads" in r.message]
