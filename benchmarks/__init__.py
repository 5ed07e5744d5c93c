"""Side-by-side measurements, one command each. Both sides run in one process on the same work; results go to ``results/``."""
