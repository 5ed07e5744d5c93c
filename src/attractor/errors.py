"""The exceptions of this package.

Every error that the package raises on purpose is an :class:`AttractorError`. Its message is one sentence: what is
wrong, where, and what to do. The command line prints it and exits with code 2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class AttractorError(Exception):
    """Base of every error that is raised on purpose."""


class ConfigError(AttractorError, ValueError):
    """A setting or an argument is invalid."""


class DataError(AttractorError, ValueError):
    """Input data cannot be read or is invalid."""


class CheckpointError(AttractorError, ValueError):
    """A checkpoint is damaged, incomplete or of another kind."""


class MissingExtraError(AttractorError, ImportError):
    """A feature needs an optional dependency that is not installed."""


class NotConvergedError(AttractorError, ArithmeticError):
    """A solve did not converge. Raised only with ``throw=True``.

    ``solution`` is the :class:`attractor.Solution` at which the solve ended.
    """

    def __init__(self, message: str, solution: Any = None) -> None:
        super().__init__(message)
        self.solution = solution


class DivergedError(AttractorError, ArithmeticError):
    """Training diverged: losses, gradients or solves are out of bounds."""


class LostRankError(AttractorError, RuntimeError):
    """Another process of a distributed run does not answer."""


@contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Turn the failed import of an optional package into a :class:`MissingExtraError` that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package == "attractor":
            raise
        raise MissingExtraError(
            f"{package} is not installed; install it with: pip install 'attractor-models[{extra}]'."
        ) from error
