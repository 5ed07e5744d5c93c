"""A bilevel problem: choose one ridge strength per feature by the validation loss of the ridge regression.

The inner solution is the fixed point of gradient descent, and ``Implicit`` differentiates through it without unrolling.

    python examples/bilevel.py --num-steps 60
"""

import argparse

import torch
from torch import Tensor

from attractor import Implicit, Tolerance, fixed_point


def ridge(x: Tensor, y: Tensor, log_strength: Tensor) -> Tensor:
    """Return the weights (D,) that minimise ``mean((x·w − y)²) + Σ exp(log_strength)·w²``."""
    gram, moment = x.T @ x / len(x), x.T @ y / len(x)
    penalty = log_strength.exp()  # (D,)
    step = 1 / (torch.linalg.matrix_norm(gram, 2) + penalty.max()).detach()
    stop = Tolerance(rtol=1e-10, max_evaluations=2000)
    solution = fixed_point(
        lambda w: w - step * (w @ gram - moment + penalty * w),
        torch.zeros(1, x.shape[1], dtype=x.dtype),  # one equation
        stop=stop,
        gradient=Implicit(stop=stop),
        throw=True,
    )
    return solution.value[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=60)
    num_steps = parser.parse_args().num_steps
    generator = torch.Generator().manual_seed(0)
    true = torch.zeros(12, dtype=torch.float64)
    true[:3] = torch.tensor([2.0, -1.0, 1.5], dtype=torch.float64)  # the other nine features are noise

    def draw(num: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(num, 12, generator=generator, dtype=torch.float64)
        return x, x @ true + 0.8 * torch.randn(num, generator=generator, dtype=torch.float64)

    train, validation = draw(24), draw(200)
    log_strength = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_strength], lr=0.2)
    losses = []
    for _ in range(num_steps):
        weights = ridge(*train, log_strength)
        loss = (validation[0] @ weights - validation[1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"validation loss: {losses[0]:.4f} at equal strengths, {losses[-1]:.4f} after {num_steps} outer steps")
    strengths = log_strength.detach().exp()
    print(f"mean strength: {strengths[:3].mean():.3f} for features that matter, {strengths[3:].mean():.3f} for noise")


if __name__ == "__main__":
    main()
