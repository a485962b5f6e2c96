"""The legacy step that bench/ times computes what scvi 0.6.8 computed, drop by drop."""

import pytest
import torch
from witness import (
    INDEX,
    INPUTS,
    N_GENES,
    array,
    arrays,
    assert_parity,
    batch_for,
    case_id,
    counts_for,
)

CASES = [
    case
    for case in INDEX["cases"]
    if case["class"] == "VAE"
    and "raises" not in case
    and set(case["options"])
    <= {"n_batch", "n_labels", "n_hidden", "n_latent", "n_layers", "dispersion"}
    | {"reconstruction_loss", "latent_distribution"}
    and case["options"]["dispersion"] == "gene"
    and case["options"]["latent_distribution"] == "normal"
]
OPTIONS = ("n_batch", "n_hidden", "n_latent", "n_layers", "reconstruction_loss")


@pytest.fixture
def legacy_class(monkeypatch):
    from _kit.legacy import LegacyVAE

    return LegacyVAE


def test_there_are_cases_of_every_likelihood_depth_and_number_of_batches():
    for option, count in (("reconstruction_loss", 3), ("n_layers", 2), ("n_batch", 3)):
        assert len({case["options"][option] for case in CASES}) == count


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_losses_and_gradients_are_those_of_scvi(legacy_class, case, mode):
    model = legacy_class(N_GENES, **{k: case["options"][k] for k in OPTIONS})
    own = model.state_dict()
    state = {k: v.to(own[k].dtype) for k, v in arrays(case["state"]).items()}
    model.load_state_dict(state, strict=True)
    model.train(mode == "train")
    torch.manual_seed(INDEX["seeds"][mode])
    first, second, _ = model(
        counts_for(case), INPUTS["local_l_mean"], INPUTS["local_l_var"], batch_for(case)
    )
    (INPUTS["up_first"] @ first + INPUTS["up_second"] @ second).backward()
    record = case[mode]["forward"]
    assert_parity(first, array(record["losses"][0]), "reconstruction + KL(l)")
    assert_parity(second, array(record["losses"][1]), "KL(z)")
    largest = max(array(g).abs().max().item() for g in record["gradients"].values() if g)
    for name, parameter in model.named_parameters():
        entry = record["gradients"][name]
        if entry is None:
            assert parameter.grad is None or not parameter.grad.any(), name
        else:
            worst = (parameter.grad - array(entry)).abs().max().item()
            assert worst <= 1e-5 * max(largest, 1), f"{name}: {worst:.2e}"
