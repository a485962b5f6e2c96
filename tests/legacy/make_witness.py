"""Record what scvi 0.6.8 computes, as fixtures for the parity tests.

Run where ``scvi==0.6.8`` and torch are installed::

    pip install torch==2.13.0 numpy scipy pandas scikit-learn anndata scanpy h5py tables \
        matplotlib hyperopt pymongo loompy
    pip install --no-deps scvi==0.6.8
    python tests/legacy/make_witness.py

Writes beside itself ``witness.npz`` (every array once, float32, with a JSON index that says how
each case was called) and ``checkpoint.pt`` (the state dict at the end of ``train_script.py``).
"""

import itertools
import json
import pathlib

import numpy as np
import torch

for name in ("str", "int", "float", "object", "bool", "complex"):
    if name not in vars(np):  # removed from numpy after scvi 0.6.8 was released
        setattr(np, name, getattr(__builtins__, name))

from scvi.models import LDVAE, VAE  # noqa: E402

HERE = pathlib.Path(__file__).parent
CLASSES = {"VAE": VAE, "LDVAE": LDVAE}
N_CELLS, N_GENES, N_LABELS = 5, 7, 2
INIT_SEED, EVAL_SEED, TRAIN_SEED = 17, 5, 6


class Store:
    """Arrays written once each, found again by offset."""

    def __init__(self):
        self.values, self.seen, self.size = [], {}, 0

    def add(self, tensor):
        array = torch.as_tensor(tensor).detach().numpy().astype(np.float32)  # a copy
        key = (array.shape, array.tobytes())
        if key not in self.seen:
            self.seen[key] = self.size
            self.values.append(array.ravel())
            self.size += array.size
        return [self.seen[key], list(array.shape)]

    def add_all(self, tensors):
        return {name: self.add(value) for name, value in tensors.items()}


def make_inputs():
    rng = np.random.RandomState(3)
    x = rng.negative_binomial(1, 0.1, size=(N_CELLS, N_GENES)).astype(np.float32)
    x[rng.rand(N_CELLS, N_GENES) < 0.3] = 0.0
    x[0, 0], x[1] = 1200.0, 0.0  # one large count, one empty cell
    as_tensor = torch.from_numpy
    return {
        "x": as_tensor(x),
        "local_l_mean": as_tensor(rng.normal(3.0, 0.3, (N_CELLS, 1)).astype(np.float32)),
        "local_l_var": as_tensor(rng.uniform(0.2, 2.0, (N_CELLS, 1)).astype(np.float32)),
        "batch_index": torch.tensor([[0], [2], [1], [2], [0]]),
        "y": torch.tensor([[1], [0], [0], [1], [1]]),
        "up_first": as_tensor(rng.normal(size=N_CELLS).astype(np.float32)),
        "up_second": as_tensor(rng.normal(size=N_CELLS).astype(np.float32)),
    }


def perturb(model):
    """Move BatchNorm away from its initial 0 and 1, in the order of the state dict."""
    generator = torch.Generator().manual_seed(99)
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif key.endswith("running_mean") or (".1." in key and key.endswith(("weight", "bias"))):
            value.add_(0.2 * torch.randn(value.shape, generator=generator))


def counts_for(spec, inputs):
    """x, without its largest counts where nothing tames them."""
    return inputs["x"].clamp(max=spec.get("x_max", float("inf")))


def build(spec, state=None):
    torch.manual_seed(INIT_SEED)
    model = CLASSES[spec["class"]](N_GENES, **spec["options"])
    if state is not None:
        model.load_state_dict(state)
    return model


def batch_for(spec, inputs):
    n_batch = spec["options"].get("n_batch", 0)
    if n_batch == 0:
        return None
    return inputs["batch_index"] if n_batch > 1 else torch.zeros(N_CELLS, 1, dtype=torch.int64)


def record_mode(spec, state, inputs, training, store):
    """inference, get_reconstruction_loss, forward and its gradients in one mode."""
    seed, batch, record = TRAIN_SEED if training else EVAL_SEED, batch_for(spec, inputs), {}
    model = build(spec, state).train(training)
    torch.manual_seed(seed)
    x = counts_for(spec, inputs)
    outputs = model.inference(x, batch, inputs["y"])
    record["inference"] = store.add_all(outputs)
    loss = model.get_reconstruction_loss(
        x, outputs["px_rate"], outputs["px_r"], outputs["px_dropout"]
    )
    record["reconstruction_loss"] = store.add(loss)

    more = spec, state, inputs, training, seed
    record["forward"] = record_forward(*more, torch.float32, store)
    # scvi multiplies a float32 one-hot with px_r, which fails in float64
    if spec["options"].get("dispersion") not in ("gene-batch", "gene-label"):
        record["forward_float64"] = record_forward(*more, torch.float64, store)
    return record


def record_forward(spec, state, inputs, training, seed, dtype, store):
    """Both losses, the gradients of their weighted sum and the moved BatchNorm statistics."""
    model = build(spec, state).to(dtype).train(training)
    inputs = {**inputs, "x": counts_for(spec, inputs)}
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    torch.manual_seed(seed)
    first, second, third = model(
        cast["x"], cast["local_l_mean"], cast["local_l_var"], batch_for(spec, inputs), cast["y"]
    )
    assert type(third) is float
    assert third == 0.0
    (cast["up_first"] @ first + cast["up_second"] @ second).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {
        "losses": [store.add(first), store.add(second)],
        "gradients": {n: None if g is None else store.add(g) for n, g in grads.items()},
        "buffers": store.add_all({n: b for n, b in model.named_buffers() if "running" in n}),
    }


def combinations():
    for dispersion, likelihood, latent, n_batch, n_layers in itertools.product(
        ("gene", "gene-batch", "gene-label", "gene-cell"),
        ("zinb", "nb", "poisson"),
        ("normal", "ln"),
        (0, 1, 3),
        (1, 2),
    ):
        yield {
            "class": "VAE",
            "options": {
                "n_batch": n_batch,
                "n_labels": N_LABELS,
                "n_hidden": 6,
                "n_latent": 3,
                "n_layers": n_layers,
                "dispersion": dispersion,
                "reconstruction_loss": likelihood,
                "latent_distribution": latent,
            },
        }
    small = {"n_batch": 3, "n_hidden": 6, "n_latent": 3}
    yield {"class": "VAE", "options": {**small, "log_variational": False}, "x_max": 5}
    yield {"class": "VAE", "options": {**small, "dropout_rate": 0.0, "n_layers": 3}}
    for n_batch, likelihood, batch_norm, bias in itertools.product(
        (0, 3), ("zinb", "nb"), (True, False), (True, False)
    ):
        options = {"n_batch": n_batch, "n_hidden": 6, "n_latent": 3, "bias": bias}
        options.update(reconstruction_loss=likelihood, use_batch_norm=batch_norm)
        yield {"class": "LDVAE", "options": options}


def calls():
    """Further methods and arguments: (options, training, batch form, method, keywords)."""
    small = {"n_batch": 3, "n_labels": N_LABELS, "n_hidden": 6, "n_latent": 3}
    for dispersion, latent, n_layers in itertools.product(
        ("gene", "gene-batch", "gene-label", "gene-cell"), ("normal", "ln"), (1, 2)
    ):
        options = {**small, "dispersion": dispersion, "latent_distribution": latent}
        options["n_layers"] = n_layers
        for training in (False, True):
            yield options, training, "codes", "inference", {"n_samples": 3}
        yield options, False, "codes", "inference", {"n_samples": 2, "transform_batch": 2}
        yield options, False, "codes", "inference", {"transform_batch": 1}
    for latent in ("normal", "ln"):
        options = {**small, "latent_distribution": latent}
        yield options, False, "one-hot", "inference", {}
        yield options, False, "float codes", "inference", {}
        for method in ("get_sample_scale", "get_sample_rate"):
            yield options, False, "codes", method, {}
            yield options, False, "codes", method, {"n_samples": 3, "transform_batch": 0}
        for keywords in ({}, {"give_mean": True, "n_samples": 40}):
            yield options, False, None, "sample_from_posterior_z", keywords
            yield options, True, None, "sample_from_posterior_z", keywords
        yield options, True, None, "sample_from_posterior_l", {}
        yield options, False, None, "get_latents", {}
    yield {**small, "n_batch": 0}, False, "codes", "inference", {"transform_batch": 2}


def record_call(options, training, form, method, keywords, inputs, store):
    spec = {"class": "VAE", "options": options}
    model = build(spec)
    perturb(model)
    model.train(training)
    batch = inputs["batch_index"]
    if form == "one-hot":
        batch = torch.nn.functional.one_hot(batch.squeeze(1), 3).float()
    elif form == "float codes":
        batch = batch.float()
    more = {} if form is None else {"batch_index": batch, "y": inputs["y"]}
    torch.manual_seed(TRAIN_SEED if training else EVAL_SEED)
    result = getattr(model, method)(inputs["x"], **more, **keywords)
    if isinstance(result, list):
        (result,) = result
    result = result if isinstance(result, dict) else {"result": result}
    return {
        **spec,
        "training": training,
        "batch": form,
        "method": method,
        "keywords": keywords,
        "result": store.add_all(result),
        "buffers": store.add_all({n: b for n, b in model.named_buffers() if "running" in n}),
    }


def run_training_script(store):
    text = (HERE / "train_script.py").read_text()
    assert text.count("from fastvae import VAE") == 1
    scope = {}
    exec(text.replace("from fastvae import VAE", "from scvi.models import VAE"), scope)
    torch.save(scope["vae"].state_dict(), HERE / "checkpoint.pt")
    vae, counts, batch = scope["vae"], scope["data"][0], scope["data"][3]
    names = ("losses", "latent", "scale", "rate")
    record = {name: torch.as_tensor(scope[name]) for name in names}
    record.update(counts=counts, batch_index=batch)
    with torch.no_grad():
        torch.manual_seed(EVAL_SEED)
        outputs = vae.inference(counts[:10], batch[:10], transform_batch=1)
    record.update({f"first cells {name}": outputs[name] for name in ("z", "px_rate", "px_dropout")})
    return store.add_all(record)


def main():
    torch.set_num_threads(1)
    inputs, store = make_inputs(), Store()
    index = {
        "versions": {"scvi": "0.6.8", "torch": torch.__version__},
        "seeds": {"init": INIT_SEED, "eval": EVAL_SEED, "train": TRAIN_SEED},
        "inputs": store.add_all(inputs),
        "cases": [],
        "calls": [record_call(*call, inputs, store) for call in calls()],
        "training_script": run_training_script(store),
    }
    for spec in combinations():
        model = build(spec)
        case = {**spec, "initial": store.add_all(model.state_dict())}
        perturb(model)
        state = model.state_dict()
        case["state"] = store.add_all(state)
        try:
            for training in (False, True):
                case["train" if training else "eval"] = record_mode(
                    spec, state, inputs, training, store
                )
        except (AttributeError, RuntimeError) as error:
            case["raises"] = type(error).__name__
        if spec["class"] == "LDVAE":
            case["loadings"] = store.add(build(spec, state).get_loadings())
        index["cases"].append(case)
    text = np.frombuffer(json.dumps(index, separators=(",", ":")).encode(), dtype=np.uint8)
    np.savez_compressed(HERE / "witness.npz", values=np.concatenate(store.values), index=text)


if __name__ == "__main__":
    main()
