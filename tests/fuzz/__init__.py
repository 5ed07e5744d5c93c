"""Generated bad input for the command line: ``python -m tests.fuzz --help``."""
