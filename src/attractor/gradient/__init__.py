"""How to differentiate a solution, and estimates of the Jacobian there. Knows no models."""

from attractor.gradient.gradients import Gradient, Implicit, Neumann, OneStep, Phantom, Unrolled, refuse_transforms
from attractor.gradient.jacobian import jacobian_penalty, lipschitz_estimate, spectral_radius

__all__ = [
    "Gradient",
    "Implicit",
    "Neumann",
    "OneStep",
    "Phantom",
    "Unrolled",
    "jacobian_penalty",
    "lipschitz_estimate",
    "refuse_transforms",
    "spectral_radius",
]
