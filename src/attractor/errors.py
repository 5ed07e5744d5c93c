"""The exceptions of this package.

Every error that the package raises on purpose is an :class:`AttractorError`. Its message is one sentence: what is
wrong, where, and what to do. The command line prints it and exits with code 2.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Control characters, line breaks, characters that change the direction of text, and bytes that are no text.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, *, keep: str = "") -> str:
    """Return text that cannot control a terminal: unsafe characters, but for ``keep``, become escapes such as ``\\x1b``."""
    return _UNSAFE.sub(lambda m: m[0] if m[0] in keep else m[0].encode("unicode_escape").decode(), str(text))


class AttractorError(Exception):
    """Base of every error that is raised on purpose. Names in its message cannot break the line."""

    def __str__(self) -> str:
        return printable(super().__str__())


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
