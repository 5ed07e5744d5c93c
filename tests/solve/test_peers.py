"""Other libraries, if installed, find the same fixed points."""

import pytest
import torch

from attractor import Tolerance, fixed_point
from attractor.testing import zoo

PROBLEMS = [p for p in zoo() if p.contracts]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_scipy_finds_the_same_point(problem) -> None:
    """scipy.optimize.anderson finds the root of update(y) − y at our fixed point."""
    optimize = pytest.importorskip("scipy.optimize")
    ours = fixed_point(problem.update, problem.y0, stop=Tolerance(rtol=1e-10, max_evaluations=400)).value

    def root(y):
        y = torch.from_numpy(y).view_as(problem.y0)
        return (problem.update(y) - y).numpy().reshape(-1)

    theirs = optimize.anderson(root, problem.y0.numpy().reshape(-1), f_tol=1e-9, maxiter=1000)
    assert torch.allclose(ours.reshape(-1), torch.from_numpy(theirs), atol=1e-6)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_torchdeq_finds_the_same_point(problem) -> None:
    """TorchDEQ's Anderson solver finds our fixed point, as precisely as its fixed ridge allows."""
    anderson_solver = pytest.importorskip("torchdeq.solver.anderson").anderson_solver
    ours = fixed_point(problem.update, problem.y0, stop=Tolerance(rtol=1e-10, max_evaluations=400)).value
    theirs, *_ = anderson_solver(problem.update, problem.y0, max_iter=200, tol=1e-9, stop_mode="rel", lam=1e-10)
    assert torch.allclose(ours, theirs, atol=1e-5)
