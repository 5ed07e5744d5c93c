"""The command line: each command is a typed function; mistakes are one sentence and exit code 2."""

from attractor.cli.main import main

__all__ = ["main"]
