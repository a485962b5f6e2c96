"""Parts of a network that stay in evaluation mode."""

from __future__ import annotations

import copy
import pickle

import torch

from fastvae import VAE


def modes(module: VAE) -> dict[str, bool]:
    return {name.split(".")[0]: part.training for name, part in module.named_modules() if name}


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    module = VAE(5, n_batch=2)
    assert module.frozen_parts == ()
    assert all(modes(module.train()).values())
    module.frozen_parts = ("z_encoder", "l_encoder")
    assert module.train() is module
    for again in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        again.train()
        assert again.training
        assert modes(again) == {"z_encoder": False, "l_encoder": False, "decoder": True}
    assert not any(modes(module.eval()).values())
    module.frozen_parts = ()
    assert all(modes(module.train()).values())


def test_a_frozen_encoder_has_no_dropout_and_keeps_its_statistics() -> None:
    module = VAE(5, dropout_rate=0.5)
    module.frozen_parts = ("z_encoder",)
    module.train()
    before = {name: value.clone() for name, value in module.z_encoder.state_dict().items()}
    x = torch.poisson(torch.full((40, 5), 3.0))
    first, second = (module.z_encoder(torch.log1p(x))[0] for _ in range(2))
    assert torch.equal(first, second)
    for name, value in module.z_encoder.state_dict().items():
        assert torch.equal(value, before[name])
