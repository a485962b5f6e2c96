"""`Model`: data in, training, answers out; saving and loading."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import __version__
from .._files import atomic_path, check_regular, check_writable_folder
from .._torch import seeded
from ..data.file_names import FileBatches, key_of_files
from ..data.keys import checked_key, in_words
from ..data.opening import FileFrames, narrowed, open_data
from ..data.request import Source, Wanted
from ..data.sources.slots import Slot
from ..data.stores.store import warn_of_small_batches
from ..errors import InputError, file_path, true_or_false, whole_number
from ..train import resolve_device
from ..train.history import history_text, parse_history
from .base import State
from .differential.differential import Differential
from .expression import Answers
from .mapping import Querying, origin_lines
from .new_data import check_reading, fitting
from .selection import gene_list
from .setup import Options, Setup, batch_keys
from .training import Fitting

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .new_data import Reading


class Model(Fitting, Answers, Differential, Querying):
    """scVI for a data set: train it, then ask for latent space and denoised expression.

    Parameters
    ----------
    data
        Raw counts: a path (.h5ad, AnnData zarr, 10x .h5, 10x mtx folder) or a list of them, an
        AnnData, a scipy sparse matrix or an array of cells by genes.
    batch_key, labels_key
        Columns of ``obs`` with the batch and the label of each cell. Of a list of columns each
        combination that occurs is one, such as "donor1 | v3".
    layer
        Take the counts from this layer instead of ``X`` ("X" is ``X`` itself).
    use_raw, genome
        Take the counts from ``raw``; which genome of a 10x file that holds several.
    gene_names
        Column of ``var`` that names the genes, in the place of its index. Genes are the same in
        several files, and in data that the model is given later, that have the same id (in the
        columns gene_ids, gene_id, ensembl_id or feature_id of ``var``, or as its index, versions
        left out); where ids are not known, those of one name.
    n_latent, n_hidden, n_layers, dropout_rate
        Size of the latent space; width, depth and dropout of the networks.
    dispersion
        "gene", "gene-batch", "gene-label" or "gene-cell".
    reconstruction_loss
        "zinb", "nb" or "poisson".
    latent_distribution
        "normal" or "ln" (logistic-normal).
    use_observed_lib_size
        Take the total count of a cell as its library size; otherwise it is a latent variable.
    residence
        Where the counts are kept: "host" (in memory), "disk" (streamed from .h5ad or zarr),
        "device" (in the memory of the device that `fit` trains on), or "auto": in memory if they
        fit, and on a GPU if they fit there.
    memory_limit
        How much memory streaming may take, such as "2GB", beyond what the process has when it
        begins; with "auto" counts that need more are streamed.
    genes
        Names of the genes to use; None is all, or those that all files have in common.
    n_top_genes
        Of these, use so many of the most variable (``seurat_v3``, within batches).
    batch_key_of
        The batch column of the files in which it is not `batch_key`, by the paths of the files, or
        by their names as ``obs["file"]`` has them.
    batch_per_file
        Make each file a batch, in a new column of obs of this name; ``batch_key="file"`` does so
        too. A batch has the name of its file, or, of files that are named alike, as much of the
        path as tells them apart. The model knows files by these names when it is given new ones.
    encode_covariates
        Tell the encoder the batch as well, not the decoder alone. A query that is mapped onto the
        model then has columns in the encoder too, and its latent positions move.
    allow_fractional
        Take counts corrected for ambient RNA (CellBender, SoupX, DecontX): most of them are no
        whole numbers, and without this such values are refused as log-normalised.
    allow_links
        Also read what files store in other files (links, external storage), as for
        `fastvae.data.read`; only for files that you trust.

    Raises
    ------
    InputError
        Data or an option that cannot be used; the message says what to do.

    Notes
    -----
    Random numbers of the answers come from their `seed` argument, so a question asked twice has
    one answer; ``seed=None`` draws from torch's generator.

    Examples
    --------
    >>> model = fastvae.Model("atlas.h5ad", batch_key="donor").fit(seed=0)
    >>> adata.obsm["X_fastvae"] = model.get_latent_representation()
    >>> model.save("run")
    >>> model = fastvae.Model.load("run", "atlas.h5ad")
    """

    def __init__(
        self,
        data: Any,
        *,
        batch_key: str | Sequence[str] | None = None,
        labels_key: str | Sequence[str] | None = None,
        layer: str | None = None,
        n_latent: int = 10,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: str = "gene",
        reconstruction_loss: str = "zinb",
        latent_distribution: str = "normal",
        use_observed_lib_size: bool = True,
        use_raw: bool = False,
        genome: str | None = None,
        residence: str = "auto",
        memory_limit: int | str | None = None,
        genes: Sequence[str] | None = None,
        n_top_genes: int | None = None,
        batch_key_of: Mapping[str, str] | None = None,
        encode_covariates: bool = False,
        batch_per_file: str | None = None,
        allow_fractional: bool = False,
        allow_links: bool = False,
        gene_names: str | None = None,
    ) -> None:
        batch_key = key_of_files(data, batch_key, batch_per_file)
        labels_key = checked_key(labels_key, "labels_key")
        options = Options(
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            reconstruction_loss=reconstruction_loss,
            latent_distribution=latent_distribution,
            use_observed_lib_size=use_observed_lib_size,
            encode_covariates=encode_covariates,
        )
        options.check_keys(batch_key, labels_key)
        slot = Slot(
            layer,
            use_raw,
            genome,
            allow_fractional,
            allow_links=allow_links,
            gene_names=gene_names,
        )
        source = Source(residence, memory_limit)
        wanted = Wanted(
            slot=fitting(slot, data),
            batch_key=batch_key,
            labels_key=labels_key,
            batch_key_of=batch_keys(batch_key_of),
            file_batches=FileBatches(strict=True) if batch_per_file is not None else None,
            gene_names=None if genes is None else gene_list(genes),
        )
        store, frames = open_data(data, wanted, source)
        if n_top_genes is not None:
            number = whole_number("n_top_genes", n_top_genes, minimum=2)
            store, frames = narrowed(store, frames, wanted, source, number)
        warn_of_small_batches(store, batch_key)
        super().__init__(Setup.of(options, store, batch_key, labels_key, slot, frames))
        if isinstance(frames, FileFrames) and len(frames.files) > 1 and batch_key is None:
            warnings.warn(
                f"{len(frames.files)} files are trained as one batch, since batch_key= is not "
                "given: name the column of obs that has the batch, or make each file a batch with "
                "batch_per_file='sample'",
                UserWarning,
                stacklevel=2,
            )
        self._attach(store, frames)
        self._residence = residence

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write model.safetensors, config.json and history.csv to `folder`.

        At any moment, also when the disk is full or the process dies, the folder holds one whole
        model, the old or the new one. No counts and no pickles are in the files.

        Raises
        ------
        InputError
            The folder has something in it and `overwrite` is false, or cannot be written.
        """
        overwrite = true_or_false("overwrite", overwrite)
        target = check_writable_folder(file_path("folder", folder), overwrite=overwrite)
        config = {
            "fastvae_version": __version__,
            "is_trained": self.is_trained,
            **self._setup.to_config(),
            "training": self.training,
            "origin": self.origin,
        }
        write_saved(target, self.module.state_dict(), config, history_text(self._history))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        data: Any = None,
        *,
        device: str | torch.device = "auto",
        residence: str = "auto",
        memory_limit: int | str | None = None,
        **reading: Unpack[Reading],
    ) -> Model:
        """Read a model that `save` wrote.

        Parameters
        ----------
        folder
            Where it was saved.
        data
            Data to train further on and to answer for, as in the constructor; None if every
            question will bring its own.
        device
            Where the network goes, as in `fit`.
        residence, memory_limit
            Of `data`, as in the constructor.
        **reading
            Of `data`: ``layer``, ``use_raw``, ``genome``, ``allow_fractional``, ``gene_names``
            and ``batch_key_of``, as in the methods that answer for new data.

        Returns
        -------
        Model
            With the weights, the history and the training summary as they were saved.

        Raises
        ------
        InputError
            A file is missing, damaged, foreign or of a newer version; or the data do not fit.
        """
        check_reading(data, reading)
        folder = file_path("folder", folder)
        source = Source(residence, memory_limit)
        where = resolve_device(device)
        config = read_config(folder)
        model = cls.__new__(cls)
        try:
            State.__init__(model, Setup.from_config(config))
            model.training = dict(config["training"])
            model.is_trained = bool(config["is_trained"])
            model.origin = dict(config.get("origin", {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{folder / 'config.json'} is damaged ({reason}); restore it or train again"
            ) from error
        with seeded(torch.device("cpu"), 0):
            module = model.module
        fill_module(module, read_weights(folder, config), folder)
        module.to(where)
        history = read_part(folder, HISTORY, config.get("history_sha256"))
        if history is not None:
            model._history = parse_history(history, folder / HISTORY)
        if data is not None:
            model._attach(*model._setup.store_of(data, source, reading))
            model._residence = residence
        return model

    def __repr__(self) -> str:
        setup, options = self._setup, self._setup.options
        cells = f"{self._store.n_cells} cells x " if self._store else ""
        layers = f"{options.n_layers} hidden layer{'s' if options.n_layers > 1 else ''}"
        lines = [
            f"fastvae.Model of {cells}{len(setup.gene_names)} genes",
            f"  {options.reconstruction_loss}, dispersion {options.dispersion}, "
            f"{options.n_latent} latent dimensions ({options.latent_distribution}), "
            f"{layers} of {options.n_hidden}, "
            f"{'observed' if options.use_observed_lib_size else 'learned'} library size",
        ]
        if setup.batch_key is not None:
            told = ", told to the encoder" if options.encode_covariates else ""
            n_batches = len(setup.batch_categories)
            lines.append(f"  {n_batches} batches in {in_words(setup.batch_key)}{told}")
        if setup.labels_key is not None:
            lines.append(f"  {len(setup.label_categories)} labels in {in_words(setup.labels_key)}")
        lines += [
            f"  {line}" for line in origin_lines(self.origin, setup.may_lack, len(setup.gene_names))
        ]
        lines.append(f"  {self._training_line()}")
        return "\n".join(lines)


WEIGHTS = "model.safetensors"
CONFIG = "config.json"
HISTORY = "history.csv"
FORMAT = "fastvae-model"
FORMAT_VERSION = 1


def write_saved(
    folder: Path, state: dict[str, Tensor], config: dict[str, Any], history: str
) -> None:
    """Write weights, history and configuration so that one model, old or new, is always there.

    The configuration carries the digests of the other two. They are written whole under hidden
    names first; the new model is in place from the moment the configuration is, and `read_part`
    finds them under either name.

    Parameters
    ----------
    history
        The text of history.csv.

    Raises
    ------
    WriteError
        A file could not be written; the model that was there before is untouched.
    """
    from safetensors.torch import save

    weights = save({name: value.detach().cpu().contiguous() for name, value in state.items()})
    parts = {WEIGHTS: weights, HISTORY: history.encode()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "weights_sha256": digests[WEIGHTS],
        "history_sha256": digests[HISTORY],
        **config,
    }
    text = json.dumps(config, indent=1, allow_nan=False)
    ready = {name: folder / f".{name}.new" for name in parts}
    committed = False
    try:
        for name, content in parts.items():
            with atomic_path(ready[name], name=folder / name) as temporary:
                temporary.write_bytes(content)
        with atomic_path(folder / CONFIG) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        committed = True
        for name, path in ready.items():
            with suppress(OSError):  # found under its hidden name
                path.replace(folder / name)
    finally:
        if not committed:
            for path in ready.values():
                path.unlink(missing_ok=True)


def read_part(folder: Path, name: str, digest: str | None) -> bytes | None:
    """Read the weights or the history that belong to the configuration beside them.

    Returns
    -------
    bytes or None
        What has the digest; else what is there under the plain name, or None.
    """
    plain = folder / name
    if plain.exists():
        check_regular(plain)
    content = plain.read_bytes() if plain.exists() else None
    ready = folder / f".{name}.new"
    if digest is None or not ready.is_file():
        return content
    if content is not None and hashlib.sha256(content).hexdigest() == digest:
        return content
    # A save was cut short after its configuration was in place.
    late = ready.read_bytes()
    return late if hashlib.sha256(late).hexdigest() == digest else content


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of the model saved in `folder`.

    Raises
    ------
    InputError
        No model there, or its configuration is damaged, foreign or of a newer version.
    """
    path = folder / CONFIG
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that a model was saved to")
    if not path.is_file():
        raise InputError(
            f"{folder} holds no saved model: {CONFIG} is missing; give the folder that "
            "Model.save or fastvae train wrote"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); restore it or train again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{path} does not describe a fastvae model; was another program's given?")
    version = config.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}, and this fastvae reads up to "
            f"{FORMAT_VERSION}: it was saved by fastvae {config.get('fastvae_version')}; "
            "upgrade with pip install -U fastvae"
        )
    return config


def read_weights(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Read the weights that belong to `config`.

    Raises
    ------
    InputError
        The file is missing, damaged, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / WEIGHTS
    content = read_part(folder, WEIGHTS, config.get("weights_sha256"))
    if content is None:
        raise InputError(f"{path} is missing; restore it or train again")
    if hashlib.sha256(content).hexdigest() != config.get("weights_sha256"):
        raise InputError(
            f"{path} is damaged or does not belong to the {CONFIG} beside it (its SHA-256 is not "
            "the one written there); restore both files from one save or train again"
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error


def fill_module(module: torch.nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Load `state` into `module`.

    Raises
    ------
    InputError
        Names or shapes differ from those the configuration asks for.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()  # the others are the same for other weights
        raise InputError(
            f"{folder / WEIGHTS} does not fit {CONFIG}: {first} Restore both files from one save"
        ) from error
