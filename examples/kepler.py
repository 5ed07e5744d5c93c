"""Kepler's equation E = M + e·sin(E) for many orbits: scalar states, and the exact derivative of the solution.

python examples/kepler.py
"""

import torch

from attractor import Implicit, Tolerance, fixed_point


def eccentric_anomaly(mean_anomaly: torch.Tensor, eccentricity: torch.Tensor) -> torch.Tensor:
    """Return E, one equation per orbit; both arguments and the result are (N,)."""
    stop = Tolerance(rtol=1e-12, max_evaluations=200)
    solution = fixed_point(
        lambda E: mean_anomaly + eccentricity * torch.sin(E),
        mean_anomaly.detach(),
        stop=stop,
        gradient=Implicit(stop=stop),
        equation_dims=0,  # the state of one equation is a scalar
        throw=True,  # raise unless every orbit converges
    )
    print(f"{solution.outcome} Evaluations per orbit: {solution.evaluations.tolist()}")
    return solution.value


def main() -> None:
    mean_anomaly = torch.linspace(0.2, 3.0, 6, dtype=torch.float64)
    eccentricity = torch.linspace(0.05, 0.9, 6, dtype=torch.float64).requires_grad_()
    E = eccentric_anomaly(mean_anomaly, eccentricity)
    E.sum().backward()
    with torch.no_grad():
        exact = torch.sin(E) / (1 - eccentricity * torch.cos(E))
    error = (eccentricity.grad - exact).abs().max().item()
    print(f"largest error of dE/de: {error:.1e}")
    assert error < 1e-9


if __name__ == "__main__":
    main()
