"""A spread over seeds is printed only where there are several."""

from benchmarks.language import _short, _spread
from benchmarks.sudoku import _deviation

from benchmarks import with_spread


def test_one_seed_has_no_spread() -> None:
    """Not a spread of zero; two equal seeds have that one."""
    assert _deviation([0.5]) is None
    assert _deviation([0.5, 0.5]) == 0
    assert with_spread(50.0, None, 1) == "50.0"
    assert with_spread(50.0, 0.0, 1) == "50.0 ± 0.0"
    assert _short(_spread([2e6]), 1, 1e6) == "2.0"
    assert _short(_spread([2e6, 4e6]), 1, 1e6) == "3.0 ± 1.0"
