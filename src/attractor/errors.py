"""The one exception tree.

Everything this package raises on purpose is an :class:`AttractorError`. Its message is one sentence that
says what is wrong, where, and what to do; the command line prints it and exits with code 2.
"""

from typing import Any


class AttractorError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(AttractorError, ValueError):
    """A setting or an argument that cannot work."""


class DataError(AttractorError, ValueError):
    """Input data that cannot be read or does not mean what it should."""


class CheckpointError(AttractorError, ValueError):
    """A checkpoint that is damaged, incomplete or of another kind."""


class NotConvergedError(AttractorError, ArithmeticError):
    """A solve that did not converge, raised only if the caller asks for it (``throw=True``).

    ``solution`` is the :class:`attractor.Solution` at which the solve ended.
    """

    def __init__(self, message: str, solution: Any = None) -> None:
        super().__init__(message)
        self.solution = solution


class DivergedError(AttractorError, ArithmeticError):
    """Training that cannot go on, because losses, gradients or solves have left all bounds."""


class LostRankError(AttractorError, RuntimeError):
    """A process of a distributed run that no longer answers."""
