"""Hidden layers through torch.compile: the same training, and nothing left of it afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_data, small_store
from static_step import SETTINGS, as_on_a_gpu, vae
from typer.testing import CliRunner

from fastvae import InputError, Model
from fastvae.cli import app
from fastvae.data import Minibatches
from fastvae.data.stores.device import DeviceStore
from fastvae.nn import FCLayers
from fastvae.train import TrainSettings, compiled, new_history, train_vae

__all__ = ["as_on_a_gpu"]

FIT: dict[str, Any] = {"batch_size": 16, "seed": 0, "device": "cpu", "progress": False}
pytestmark = [  # torch's own, which its compiler does not show as long as they are no errors
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """What torch.compile traced; run as traced, which saves the compiler's half minute."""
    found: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "_OPTIONS", {"backend": backend})
    return found


def fit(
    epochs: int = 3,
    *,
    n_layers: int = 1,
    n_hidden: int = 16,
    learned: bool = False,
    **options: Any,
) -> Model:
    model = Model(
        small_data(),
        batch_key="batch",
        n_latent=3,
        n_hidden=n_hidden,
        n_layers=n_layers,
        use_observed_lib_size=not learned,
    )
    return model.fit(epochs, **FIT, **options)


def losses(model: Model) -> list[list[float]]:
    return [model.history[name].tolist() for name in ("train_loss", "validation_loss")]


def test_same_losses_and_names() -> None:
    """By torch's real compiler, dropout and last short minibatch included."""
    plain, model = fit(2), fit(2, compile=True)
    np.testing.assert_allclose(losses(model), losses(plain), rtol=1e-5)
    assert model.training["settings"]["compile"]
    expected = plain.module.state_dict()
    found = model.module.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_layers_are_what_is_compiled(graphs: list[torch.fx.GraphModule]) -> None:
    plain, model = fit(n_layers=2), fit(n_layers=2, compile=True)
    np.testing.assert_allclose(losses(model), losses(plain), rtol=1e-6)
    names = ("batch_norm", "relu", "dropout", "linear")
    traced = [[n for n in names if n in str(graph.code)] for graph in graphs[1:]]  # after a probe
    # z encoder from its second linear layer on, and the decoder, which has no dropout; each for
    # training, for the shorter last minibatch, and for validation, which is one minibatch
    assert sorted(traced) == sorted([list(names), ["batch_norm", "relu", "linear"]] * 3)
    assert graphs[1].code.count("linear(") == 1
    assert not [graph for graph in graphs if "log1p" in graph.code]


def test_layers_of_one_shape_are_compiled_once(graphs: list[torch.fx.GraphModule]) -> None:
    """Those of both encoders, and those of another model of the same options."""
    fit(compile=True, learned=True)
    traced = len(graphs)
    assert traced == 1 + 2 * 3  # a probe, encoders and decoder
    fit(compile=True, learned=True)
    assert len(graphs) == traced


def test_layers_of_many_shapes_are_all_compiled(graphs: list[torch.fx.GraphModule]) -> None:
    """Also beyond the eight versions that torch keeps by itself."""
    traced = []
    for n_hidden in (8, 12, 16, 20):
        fit(1, compile=True, n_hidden=n_hidden)
        traced.append(len(graphs))
    new = np.diff(traced)
    assert traced[-1] > 8
    assert (new == new[0]).all()


def test_nothing_is_left(graphs: list[torch.fx.GraphModule], tmp_path: Path) -> None:
    plain = fit(4)
    fit(2, compile=True, checkpoint_dir=tmp_path / "points")
    model = fit(4, compile=True, checkpoint_dir=tmp_path / "points", resume=True)
    np.testing.assert_allclose(losses(model), losses(plain), rtol=1e-6)
    parts = [part for part in model.module.modules() if isinstance(part, FCLayers)]
    assert len(parts) == 3
    assert not [part for part in parts if part.compiled]
    model.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model", small_data())
    traced = len(graphs)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    assert len(graphs) == traced


def test_failure_leaves_nothing_either(graphs: list[torch.fx.GraphModule]) -> None:
    model = Model(small_data(), n_latent=3, n_hidden=16)
    with pytest.raises(InputError, match="is not finite"):
        model.fit(9, compile=True, learning_rate=1e15, **FIT)
    assert graphs
    parts = [part for part in model.module.modules() if isinstance(part, FCLayers)]
    assert not [part for part in parts if part.compiled]


def test_step_of_fixed_memory(as_on_a_gpu: None, graphs: list[torch.fx.GraphModule]) -> None:
    store = DeviceStore.of(small_store(110), torch.device("cpu"))
    found = []
    for wanted in (False, True):
        settings = TrainSettings(**{**SETTINGS.as_dict(), "compile": wanted})
        batches = Minibatches(store, batch_size=32, shuffle=True, seed=3)
        history = new_history()
        train_vae(vae(), batches, None, settings, history, seed=1, n_train=110, progress=False)
        found.append(history["train_loss"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    assert graphs


def test_no_compiler_is_said_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", fails)
    model = Model(small_data(), n_latent=3, n_hidden=16)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    match = r"does not work here for cpu \(No working C\+\+ compiler found\); it needs a C\+\+"
    with pytest.raises(InputError, match=match):
        model.fit(2, compile=True, **FIT)
    assert model.history.empty
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])
    model.fit(1, **FIT)


def test_not_together_with_synced_batch_norm() -> None:
    with pytest.raises(InputError, match="compile and sync_batch_norm do not go together"):
        TrainSettings(compile=True, sync_batch_norm=True)


def test_command_line(graphs: list[torch.fx.GraphModule], tmp_path: Path) -> None:
    small_data().write_h5ad(tmp_path / "data.h5ad")
    command = ["train", str(tmp_path / "data.h5ad"), "-o", str(tmp_path / "run"), "--compile"]
    result = CliRunner().invoke(app, [*command, "--max-epochs", "1", "--n-hidden", "8", "--quiet"])
    assert result.exit_code == 0, result.output
    assert graphs
