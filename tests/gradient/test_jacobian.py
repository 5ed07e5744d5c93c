"""The Jacobian estimates agree with dense linear algebra."""

import torch

from attractor import jacobian_penalty, lipschitz_estimate, spectral_radius

A = torch.tensor([[0.5, 2.0, 0.0], [0.0, -0.7, 0.1], [0.2, 0.0, 0.3]], dtype=torch.float64)
Y = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def update(y: torch.Tensor) -> torch.Tensor:
    return y @ A.T + 1


def test_spectral_radius_is_the_largest_eigenvalue() -> None:
    """Also if the dominant pair is complex."""
    found = spectral_radius(update, Y, iterations=200)
    assert torch.allclose(found, torch.linalg.eigvals(A).abs().max().expand(2), rtol=1e-2)
    turn = torch.tensor([[0.6, -0.7], [0.7, 0.6]], dtype=torch.float64)
    found = spectral_radius(lambda y: y @ turn.T, Y[:, :2], iterations=200)
    assert torch.allclose(found, torch.linalg.eigvals(turn).abs().max().expand(2), rtol=1e-2)


def test_lipschitz_estimate_is_the_largest_singular_value() -> None:
    """It may exceed 1 where the spectral radius does not."""
    found = lipschitz_estimate(update, Y, iterations=50)
    assert torch.allclose(found, torch.linalg.matrix_norm(A, 2).expand(2), rtol=1e-3)
    assert (found > 1).all()
    assert (lipschitz_estimate(lambda y: 0.4 * y + Y, Y) - 0.4).abs().max() < 1e-6
    assert (lipschitz_estimate(lambda y: Y, Y) < 1).all()


def test_jacobian_penalty_estimates_the_frobenius_norm_and_can_be_minimised() -> None:
    """Its mean is ‖J‖²_F / n, and a gradient step lowers ‖J‖²_F."""
    found = jacobian_penalty(update, Y, samples=4000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(found, A.square().sum() / 3, rtol=0.05)
    w = A.clone().requires_grad_()
    jacobian_penalty(lambda y: y @ w.T, Y, generator=torch.Generator().manual_seed(0)).backward()
    with torch.no_grad():
        assert (w - 0.1 * w.grad).square().sum() < w.square().sum()
