"""Count distributions that keep decoder logits until one of their parameters is read.

``from_logits`` makes one without computing anything. `nll` goes from the logits to one number per
cell; the cells by genes matrices of rate and dispersion are computed when they are first read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..functional.likelihood import log_prob_of, nll_of, softplus_as_softmax
from ._decoder_output import Logits, Undecoded

if TYPE_CHECKING:
    _Base = torch.distributions.Distribution
else:
    _Base = object


class LazyParameter:
    """A parameter of `LazyCounts`: computed from the logits when first read; it can be set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, px: Any, owner: type | None = None) -> Any:
        if px is None:
            return self
        if self._name not in vars(px):
            px.make(self._name)
        return vars(px)[self._name]

    def __set__(self, px: Any, value: Any) -> None:
        px.leave_logits()  # the logits no longer describe the distribution
        vars(px)[self._name] = value


class LazyCounts(_Base):
    """Mixin for a count distribution: computes its parameters from logits.

    It stands before that class in the list of bases. That class takes its parameters by the names
    in `parameters`, as :mod:`fastvae.distributions` and ``scvi.distributions`` do. Objects made by
    the constructor are ordinary ones.
    """

    parameters: tuple[str, ...]
    scale = LazyParameter()
    rate = LazyParameter()
    mu = LazyParameter()
    theta = LazyParameter()
    zi_logits = LazyParameter()

    @classmethod
    def from_logits(cls, logits: Logits | Undecoded) -> LazyCounts:
        """Make the distribution; this computes nothing, and decodes nothing."""
        px = cls.__new__(cls)
        px.__dict__["_logits"] = logits
        if isinstance(logits, Logits) and logits.zi is not None and "zi_logits" in cls.parameters:
            px.__dict__["zi_logits"] = logits.zi
        return px

    def _decoded(self) -> Logits | None:
        """The logits, decoded when they are first asked for; None once they have been left."""
        logits: Logits | Undecoded | None = self.__dict__.get("_logits")
        if isinstance(logits, Undecoded):
            logits = self.__dict__["_logits"] = logits.logits()
        return logits

    def nll(self, x: Tensor) -> Tensor:
        """Negative log-likelihood of each cell.

        Parameters
        ----------
        x : Tensor, (N, G)
            Counts, dense or CSR.

        Returns
        -------
        Tensor, (N,) or (S, N)
            In nats; computed without an N x G intermediate unless a parameter has been set.
        """
        undecoded = self.__dict__.get("_logits")
        if isinstance(undecoded, Undecoded):
            return undecoded.nll(_family(self.parameters), x)
        logits = self._decoded()
        if logits is None:
            return -self.log_prob(x).sum(-1)
        if logits.scale.dim() == 2:
            return _nll(self.parameters, x, logits)
        samples = [
            _nll(self.parameters, x, _one_sample(logits, s)) for s in range(len(logits.scale))
        ]
        return torch.stack(samples)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of each entry, in nats."""
        if value.layout != torch.strided:
            value = value.to_dense()
        names = self.parameters
        mean = self.rate if "rate" in names else self.mu
        theta = self.theta if "theta" in names else None
        zi_logits = self.zi_logits if "zi_logits" in names else None
        return log_prob_of(_family(names), value, mean, theta, zi_logits)

    def touch(self) -> None:
        """Compute every parameter, if that has not been done."""
        logits = self._decoded()
        if logits is not None and "_made" not in self.__dict__:
            self._make_all(logits)

    def make(self, name: str) -> None:
        """Compute the parameter `name`, and with any but `scale` all others.

        Raises
        ------
        AttributeError
            The distribution does not have it.
        """
        logits = self._decoded()
        if logits is not None and name == "scale":
            self.__dict__["scale"] = _scale(logits)
            return
        self.touch()
        if name not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def leave_logits(self) -> None:
        """Compute every parameter and drop the logits: an ordinary distribution from now on."""
        self.touch()
        self.__dict__.pop("_logits", None)

    def get_normalized(self, key: str) -> Tensor:
        """Return the mean without extra zeros for "mu", the normalised expression for "scale"."""
        if key == "scale":
            return self.scale
        if key == "mu":
            return self.rate if "rate" in self.parameters else self.mu
        raise ValueError(f"normalized key {key} not recognized; use 'mu' or 'scale'")

    def __getattr__(self, name: str) -> Any:
        """Return what the constructor of the class behind the mixin sets beside the parameters."""
        if not name.startswith("__"):
            self.touch()
        if name not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return self.__dict__[name]

    def __repr__(self) -> str:
        logits = self.__dict__.get("_logits")
        if logits is None:
            return super().__repr__()
        return f"{type(self).__name__}(from logits: {logits.shape})"

    def _make_all(self, logits: Logits) -> None:
        """Compute every parameter and run the constructor of the class behind the mixin."""
        scale = self.scale
        rate = torch.exp(logits.log_library) * scale
        values = {"rate": rate, "mu": rate, "zi_logits": logits.zi}
        if logits.log_theta is not None:
            theta = torch.exp(logits.log_theta)
            values["theta"] = theta if logits.theta_index is None else theta[logits.theta_index]
        given = {name: values[name] for name in self.parameters}
        del self.__dict__["_logits"]  # the constructor sets attributes
        self.__init__(**given, scale=scale, validate_args=False)  # type: ignore[misc]
        self.__dict__.update(_logits=logits, _made=True)


def _scale(logits: Logits) -> Tensor:
    return torch.softmax(logits.scale, -1) if logits.softmax else softplus(logits.scale)


def _one_sample(logits: Logits, s: int) -> Logits:
    log_theta = logits.log_theta
    if log_theta is not None and log_theta.dim() == 3:
        log_theta = log_theta[s]
    library = logits.log_library
    return logits._replace(
        scale=logits.scale[s],
        log_library=library[s] if library.dim() == 3 else library,
        log_theta=log_theta,
        zi=None if logits.zi is None else logits.zi[s],
    )


def _nll(parameters: tuple[str, ...], x: Tensor, logits: Logits) -> Tensor:
    scale, library, log_theta, zi, index, softmax = logits
    if not softmax:
        scale, library = softplus_as_softmax(scale, library)
    family = _family(parameters)
    if family == "zinb" and zi is None:
        family = "nb"
    return nll_of(family, x, scale, library, log_theta, zi, theta_index=index)


def _family(parameters: tuple[str, ...]) -> str:
    """Return the likelihood whose distribution has these parameters."""
    if "rate" in parameters:
        return "poisson"
    return "zinb" if "zi_logits" in parameters else "nb"
