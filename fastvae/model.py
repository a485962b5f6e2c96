"""`Model`: data in, training, answers out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import __version__
from ._files import check_writable_folder
from ._model.answers import Answers
from ._model.differential import Differential
from ._model.fitting import Fitting
from ._model.query import Querying
from ._model.query_report import origin_lines
from ._model.reading import check_reading, fitting
from ._model.saved import HISTORY, fill_module, read_config, read_part, read_weights, write_saved
from ._model.select import gene_list
from ._model.setup import Options, Setup, batch_keys
from ._model.state import State
from .data._slots import Slot
from .data.file_names import FileBatches, key_of_files
from .data.joint import Wanted
from .data.keys import checked_key, in_words
from .data.opening import FileFrames, Source, narrowed, open_data
from .data.store import warn_of_small_batches
from .errors import InputError, file_path, true_or_false, whole_number
from .train import resolve_device
from .train.history import history_text, parse_history
from .train.step import seeded

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._model.reading import Reading


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
