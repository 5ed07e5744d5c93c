"""How to differentiate a solution, and estimates of the Jacobian there. Knows no models."""

from attractor.gradient.gradients import Gradient, Implicit, Neumann, OneStep, Phantom, Unrolled
from attractor.gradient.jacobian import jacobian_penalty, lipschitz_estimate, spectral_radius
from attractor.gradient.transforms import (
    attach_tangent,
    explain_vmap,
    in_forward_mode,
    refuse_transforms,
    without_tangent,
)

__all__ = [
    "Gradient",
    "Implicit",
    "Neumann",
    "OneStep",
    "Phantom",
    "Unrolled",
    "attach_tangent",
    "explain_vmap",
    "in_forward_mode",
    "jacobian_penalty",
    "lipschitz_estimate",
    "refuse_transforms",
    "spectral_radius",
    "without_tangent",
]
