"""The command line: each command is a typed function that parses, calls :mod:`attractor.experiment`, and prints."""

from attractor.cli.main import main

__all__ = ["main"]
