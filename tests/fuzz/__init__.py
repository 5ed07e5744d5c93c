"""Generated bad input for the command line: ``python -m tests.fuzz`` tries 3,000 cases."""
