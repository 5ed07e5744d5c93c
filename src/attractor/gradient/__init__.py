"""How to differentiate a solution, and probes of the Jacobian there. Knows no models."""

from attractor.gradient.gradients import Gradient, Implicit, Neumann, OneStep, Phantom, Unrolled
from attractor.gradient.jacobian import Contraction, contraction, jacobian_penalty, spectral_radius

__all__ = [
    "Contraction",
    "Gradient",
    "Implicit",
    "Neumann",
    "OneStep",
    "Phantom",
    "Unrolled",
    "contraction",
    "jacobian_penalty",
    "spectral_radius",
]
