"""Every solver of the package passes the public conformance suite."""

import torch

from attractor import Anderson, BestSoFar, Broyden, Picard
from attractor.testing import SolverConformance, UpdateConformance, causal_attention


class TestPicard(SolverConformance):
    accelerates = False

    def make_solver(self):
        return Picard()


class TestDampedPicard(SolverConformance):
    accelerates = False

    def make_solver(self):
        return Picard(damping=0.7)


class TestAnderson(SolverConformance):
    def make_solver(self):
        return Anderson()


class TestAndersonWithMixing(SolverConformance):
    def make_solver(self):
        return Anderson(window=3, mixing=0.8, ridge=1e-10)


class TestBroyden(SolverConformance):
    def make_solver(self):
        return Broyden()


class TestBroydenWithSmallMemory(SolverConformance):
    def make_solver(self):
        return Broyden(memory=4)


class TestBestSoFarAnderson(SolverConformance):
    def make_solver(self):
        return BestSoFar(Anderson())


class TestAttentionBlock(UpdateConformance):
    causal = True

    def make_update(self):
        return causal_attention(torch.Generator().manual_seed(0), torch.float32)

    def make_state(self):
        return torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1))
