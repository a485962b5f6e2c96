"""`Model`: made of data or of a saved model, mapped onto another, saved; its topics are mixins."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from .._files import check_writable_folder
from .._options import picked
from .._status import hint_once
from .._torch import seeded
from ..data.covariates import CovariateKeys
from ..data.file_names import FileBatches, key_of_files
from ..data.keys import checked_key, in_words
from ..data.likely_columns import missing_batch_key
from ..data.opening import FileFrames, narrowed, open_data
from ..data.request import Source, Wanted
from ..data.sources.slots import Slot
from ..data.stores.store import warn_of_small_batches
from ..errors import InputError, file_path, true_or_false, whole_number
from ..train import resolve_device
from ..train.history import history_text, parse_history
from ..train.processes import leads
from .differential_expression import DifferentialAnswers
from .expression import ExpressionAnswers
from .joint_latent import JointAnswers
from .label_answers import LabelAnswers
from .labels import SemiSupervision
from .latent import LatentAnswers
from .likelihood import QualityAnswers
from .mapping import Query, mapped, origin_lines
from .new_data import READING, Reading, check_reading, fitting
from .predictive import PosteriorAnswers
from .saving import HISTORY, fill_module, read_config, read_part, read_weights, write_saved
from .scvi_names import with_scvi_names
from .selection import gene_list
from .setup import Options, Setup, batch_keys
from .training import Fitting

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Unpack

FIT = tuple(name for name in inspect.signature(Fitting.fit).parameters if name != "self")
"""Names of the arguments of `Model.fit`."""


class Model(
    Fitting,
    LatentAnswers,
    LabelAnswers,
    ExpressionAnswers,
    PosteriorAnswers,
    QualityAnswers,
    DifferentialAnswers,
    JointAnswers,
):
    """scVI of a data set: training, latent space, denoised expression, differential expression.

    Parameters
    ----------
    data
        Raw counts: a path (.h5ad, AnnData zarr, 10x .h5, 10x mtx folder) or a list of them, an
        AnnData, a scipy sparse matrix or an array of cells by genes.
    batch_key, labels_key
        Columns of ``obs`` with the batch and the label of each cell. With a list of columns each
        combination that occurs is a batch or a label, such as "donor1 | v3".
    categorical_covariate_keys, continuous_covariate_keys
        Columns of ``obs`` with more that the decoder is told of a cell, so that the latent space
        need not have it: categories, such as the site, and numbers, such as the share of
        mitochondrial counts. Numbers are taken as they are; bring them to a common scale.
    size_factor_key
        Column of ``obs`` with size factors, above 0, that expression is multiplied by in the place
        of the library size. Expression is then the mean of a gene for a factor of 1: a softplus,
        which does not sum to 1 over genes.
    layer
        Take the counts from this layer instead of ``X`` ("X" is ``X`` itself).
    use_raw, genome
        Take the counts from ``raw``; which genome of a 10x file that holds several.
    gene_names
        Column of ``var`` that names the genes, in the place of its index. Genes of several files,
        and of data that the model reads later, are the same if they have the same id (in the
        columns gene_ids, gene_id, ensembl_id or feature_id of ``var``, or as its index, without
        the version), or, where ids are not known, the same name.
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
        begins. With "auto", counts that need more memory are streamed.
    genes
        Names of the genes to use; None is all, or those that all files have in common.
    n_top_genes
        Use this many of these genes, the most variable ones (``seurat_v3``, within batches).
    batch_key_of
        The batch column of files that have another one than `batch_key`: a dictionary from the
        paths of the files, or their names as in ``obs["file"]``, to columns.
    batch_per_file
        Make each file a batch, in a new column of obs of this name; ``batch_key="file"`` does so
        too. A batch has the name of its file; where files have the same name, it has as much of
        the path as tells them apart. By these names the model recognises files later.
    encode_covariates
        Give batch and covariates to the encoder too, and not to the decoder alone. A query that is
        mapped onto the model then has columns in the encoder too, and its latent positions move.
    deeply_inject_covariates
        Give categories to every layer, not to the first one alone.
    unlabeled_category
        Learn the labels of `labels_key`, of which this one stands for an unknown label, and give
        them to cells: semi-supervised training, scANVI. `predict` answers with labels then.
    linear_classifier
        Make the classifier of labels one linear layer, in the place of hidden layers like those of
        the encoder.
    allow_fractional
        Take counts corrected for ambient RNA (CellBender, SoupX, DecontX). Most of these are not
        whole numbers; without this option such values are refused as log-normalised.
    allow_links
        Also read what files store in other files (links, external storage), as for
        `fastvae.data.read`; only for files that you trust.

    Raises
    ------
    InputError
        Data or an option that cannot be used; the message says what to do.

    Notes
    -----
    The counts are copied when the model is made: what is done to them later changes no answer.
    ``obs`` of an AnnData is read each time it is needed, so columns that were added since can be
    used.

    The methods that answer questions share these arguments:

    data
        New data, of any kind that `Model` takes; None is the model's own. Genes are matched by
        their ids where both have them, else by name; others are left out. Batches must be ones
        the model was trained with.
    cells
        Row numbers, names of cells, or a boolean mask (a Series is matched by its index); None is
        all. Results are in this order.
    batch_size
        Cells per minibatch, rounded up to a multiple of 64. It changes memory, speed and the last
        digits, and nothing else.
    seed
        Of the random draws: the same question has the same answer. None draws from torch's
        generator.
    layer, use_raw
        Where the counts of `data` are: in this layer ("X" for ``X`` itself), or in ``raw``. By
        default where the model had them; data with a single matrix may have them there.
    genome
        Which genome of a 10x file that holds several; by default the model's.
    allow_fractional
        Take counts corrected for ambient RNA, which are no longer whole numbers; by default if
        the model did.
    allow_links
        Also read what files store in other files, as for `fastvae.data.read`; only for files that
        you trust.
    gene_names
        Column of ``var`` of `data` that names the genes; by default the model's, or the index of
        data without it.
    batch_key_of
        The batch column of the files of `data` that have another one than the model.

    They raise `InputError` if the model is not trained or has no data, or if the data or an
    option does not fit.

    Arguments may have the names of scvi-tools where these mean the same: ``adata``, ``indices``,
    ``gene_list``, ``gene_likelihood``, ``lr``.

    Examples
    --------
    >>> model = fastvae.Model("atlas.h5ad", batch_key="donor").fit(seed=0)
    >>> adata.obsm["X_fastvae"] = model.get_latent_representation()
    >>> model.save("run")
    >>> model = fastvae.Model.load("run", "atlas.h5ad")
    """

    @with_scvi_names()
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
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        size_factor_key: str | None = None,
        deeply_inject_covariates: bool = True,
        unlabeled_category: str | None = None,
        linear_classifier: bool = False,
    ) -> None:
        if isinstance(data, Setup):  # of a saved or converted model, which brings its own weights
            super().__init__(data)
            return
        batch_key = key_of_files(data, batch_key, batch_per_file)
        labels_key = checked_key(labels_key, "labels_key")
        options = picked(Options, locals())
        covariates = CovariateKeys.checked(
            categorical_covariate_keys, continuous_covariate_keys, size_factor_key
        )
        options.check_keys(batch_key, labels_key, covariates)
        semi = SemiSupervision.checked(unlabeled_category, linear_classifier, labels_key)
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
            covariates=covariates,
            batch_key_of=batch_keys(batch_key_of),
            file_batches=FileBatches(strict=True) if batch_per_file is not None else None,
            gene_names=None if genes is None else gene_list(genes),
        )
        store, frames = open_data(data, wanted, source)
        if n_top_genes is not None:
            number = whole_number("n_top_genes", n_top_genes, minimum=2)
            store, frames = narrowed(store, frames, wanted, source, number)
        warn_of_small_batches(store, batch_key)
        keys = batch_key, labels_key
        super().__init__(Setup.of(options, store, *keys, slot, frames, covariates, semi))
        if isinstance(frames, FileFrames) and len(frames.files) > 1 and batch_key is None:
            warnings.warn(
                f"{len(frames.files)} files are trained as one batch, since batch_key= is not "
                "given: name the column of obs that has the batch, or make each file a batch with "
                "batch_per_file='sample'",
                UserWarning,
                stacklevel=3,
            )
        if batch_key is None and leads() and (hint := missing_batch_key(frames.obs)):
            hint_once(hint)
        self._attach(store, frames)
        self._residence = residence

    @with_scvi_names()
    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write model.safetensors, config.json, history.csv and README.md to `folder`.

        At any moment, also when the disk is full or the process dies, the folder holds one whole
        model, the old or the new one. No counts and no pickles are in the files. README.md is the
        model card: data, network, training, versions, and a place for the licence. Without the
        line that says who wrote it, it is yours and stays as it is.

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
    @with_scvi_names(READING)
    def load(
        cls,
        folder: str | os.PathLike[str],
        data: Any = None,
        *,
        device: str | torch.device = "auto",
        residence: str = "auto",
        memory_limit: int | str | None = None,
        **reading: Unpack[Reading],
    ) -> Self:
        """Read a model that `save` wrote.

        Parameters
        ----------
        folder
            Where it was saved.
        data
            The model's own data, as in the constructor; None if every question brings its own.
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
        try:
            model = cls(Setup.from_config(config))
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

    @classmethod
    @with_scvi_names(READING)
    def load_query(
        cls,
        data: Any,
        reference: Any,
        *,
        batch_key: str | Sequence[str] | None = None,
        freeze: bool | str = True,
        min_genes: float = 0.1,
        batch_per_file: str | None = None,
        device: str | torch.device = "auto",
        residence: str = "auto",
        memory_limit: int | str | None = None,
        **reading: Unpack[Reading],
    ) -> Self:
        """Make a model of `data` with the weights of a trained reference, wider by new batches.

        Batches are matched by name. A new batch gets columns of its own in the decoder, with
        ``encode_covariates`` in the encoders too, and in a dispersion per batch. They begin as the
        mean of the reference's columns; its prior of the library size comes from its cells. `fit`
        then trains what is not frozen; before that the model answers as the reference would. The
        reference itself does not change.

        Parameters
        ----------
        data
            The query, of any kind that `Model` takes. Genes are matched by their ids, or by name:
            genes that the reference does not have are left out, missing ones count as zero.
        reference
            A trained model, or the folder that it was saved to.
        batch_key
            Column of obs with the batch; of several columns each combination is a batch. None is
            the reference's.
        freeze
            What `fit` leaves bit-equal, batch normalisation included. True: everything but the
            new columns. Unless the reference was made with ``encode_covariates``, its encoder does
            not see the batch, so all latent positions are those of the reference. "decoder":
            the encoders are trained too, and the query moves to where the reference's decoder
            explains it; embed the reference's cells with the reference. "encoder": all of the
            decoder is trained, and of the encoders only new columns. False: everything is trained.
        min_genes
            Refuse data with a smaller share of the reference's genes.
        batch_per_file, residence, memory_limit
            As in `Model`. Where the files of the reference were batches, those of the query are
            too; a file that has the name of a batch of the reference belongs to that batch.
        device
            Where the network goes, as in `fit`.
        **reading
            How `data` are read: ``layer``, ``use_raw``, ``genome``, ``allow_fractional``,
            ``allow_links``, ``gene_names`` and ``batch_key_of``, as in the notes of `Model`.

        Returns
        -------
        Model
            Its ``origin`` says what was matched; it is saved with it.

        Raises
        ------
        InputError
            The reference is not trained, there is nothing to train, or the data do not fit.

        Warns
        -----
        UserWarning
            More than a fifth of the reference's genes are missing.

        Notes
        -----
        The idea is that of scArches (Lotfollahi et al. 2022). There, as scvi-tools does it, the
        columns of old batches move as well, and weight decay moves every weight.
        """
        query = picked(Query, locals())
        return cls._mapped_onto(reference, data, query, reading, device)

    @with_scvi_names((*READING, *FIT))
    def map_query(
        self,
        data: Any,
        *,
        batch_key: str | Sequence[str] | None = None,
        freeze: bool | str = True,
        min_genes: float = 0.1,
        batch_per_file: str | None = None,
        device: str | torch.device = "auto",
        residence: str = "auto",
        memory_limit: int | str | None = None,
        **reading_and_fit: Any,
    ) -> Self:
        """Map `data` onto this model and train what is new: `load_query`, then `fit`.

        Parameters
        ----------
        data, batch_key, freeze, min_genes, batch_per_file, device, residence, memory_limit
            As in `load_query`.
        **reading_and_fit
            How `data` are read, as in `load_query`; and how `fit` trains. The KL divergence has
            its full weight from the beginning (``n_epochs_kl_warmup=None``), since the latent
            space is there already.

        Returns
        -------
        Model
            A new one; this one does not change.

        Raises
        ------
        InputError
            As `load_query` and `fit`.
        """
        query = picked(Query, locals())
        fit = {"n_epochs_kl_warmup": None, "device": device, **reading_and_fit}
        reading: Any = {name: fit.pop(name) for name in READING if name in fit}
        return self._mapped_onto(self, data, query, reading, device).fit(**fit)

    @classmethod
    def _mapped_onto(
        cls,
        reference: Any,
        data: Any,
        query: Query,
        reading: Reading,
        device: str | torch.device,
    ) -> Self:
        known, name = cls._reference(reference)
        parts = mapped(data, known._setup, known.module.state_dict(), name, query, reading)
        model = cls._with_weights(parts.setup, parts.weights, device=device, is_trained=True)
        model.origin = parts.origin
        model._attach(parts.store, parts.frames)
        model._residence = query.residence
        return model

    @classmethod
    def _reference(cls, reference: Any) -> tuple[Model, str]:
        """Return a trained model, given itself or by its folder, and what it is called."""
        if isinstance(reference, (str, os.PathLike)):
            folder = file_path("reference", reference)
            name = str(folder)
            try:
                known: Model = cls.load(folder, device="cpu")
            except InputError as error:
                raise InputError(f"reference: {error}") from error
        elif isinstance(reference, Model):
            known, name = reference, "a model in memory"
        else:
            raise InputError(
                "reference must be a trained fastvae.Model or the folder it was saved to, not "
                f"{type(reference).__name__}"
            )
        if not known.is_trained:
            raise InputError("the reference has not been trained yet; call fit() on it first")
        return known, name

    def __repr__(self) -> str:
        setup, options = self._setup, self._setup.options
        cells = f"{self._store.n_cells} cells x " if self._store else ""
        layers = f"{options.n_layers} hidden layer{'s' if options.n_layers > 1 else ''}"
        lines = [
            f"fastvae.Model of {cells}{len(setup.gene_names)} genes",
            f"  {options.reconstruction_loss}, dispersion {options.dispersion}, "
            f"{options.n_latent} latent dimensions ({options.latent_distribution}), "
            f"{layers} of {options.n_hidden}, "
            f"{setup.library_in_words()}",
        ]
        if setup.batch_key is not None:
            told = ", told to the encoder" if options.encode_covariates else ""
            n_batches = len(setup.batch_categories)
            lines.append(f"  {n_batches} batches in {in_words(setup.batch_key)}{told}")
        if (labels := setup.labels_line()) is not None:
            lines.append(f"  {labels}")
        lines += [f"  {line}" for line in setup.covariate_lines()]
        lines += [
            f"  {line}" for line in origin_lines(self.origin, setup.may_lack, len(setup.gene_names))
        ]
        lines.append(f"  {self._training_line()}")
        return "\n".join(lines)
