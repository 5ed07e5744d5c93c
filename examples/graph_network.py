"""An implicit graph network on long chains: the label of a chain is known at its first node only.

A graph network of k layers passes information over k edges. The equilibrium passes it over the complete graph, with the
weights of one layer (implicit graph neural networks, Gu et al. 2020, arXiv:2009.06211).

    python examples/graph_network.py --num-steps 40
"""

import argparse

import torch
from torch import Tensor, nn

from attractor import Implicit, Tolerance, fixed_point


class GraphNetwork(nn.Module):
    """Node states are the equilibrium of ``y = tanh(A y W + x)``; one equation is a complete graph."""

    def __init__(self, in_features: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.inject = nn.Linear(in_features, width, bias=False)
        self.mix = nn.Parameter(torch.eye(width))
        self.head = nn.Linear(width, num_classes)

    def forward(self, features: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        """From features (B, nodes, in_features) and adjacency (nodes, nodes): logits per node, evaluations (B,)."""
        x = self.inject(features)
        mix = self.mix / torch.linalg.matrix_norm(self.mix, 2).clamp_min(1.0)  # keeps the update contractive
        stop = Tolerance(rtol=1e-4, max_evaluations=120, patience=None)  # information travels before residuals fall
        solution = fixed_point(
            lambda y: torch.tanh(adjacency @ y @ mix + x),
            torch.zeros_like(x),
            stop=stop,
            gradient=Implicit(stop=stop),
            equation_dims=2,
        )
        return self.head(solution.value), solution.evaluations


def chains(num: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (num, length, 2), the directed adjacency (length, length) and labels (num,)."""
    labels = torch.randint(2, (num,), generator=generator)
    features = torch.zeros(num, length, 2)
    features[:, 0] = nn.functional.one_hot(labels, 2).float()
    return features, torch.eye(length).roll(1, 0).tril(), labels  # node i reads node i − 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=40)
    parser.add_argument("--length", type=int, default=20)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = GraphNetwork(in_features=2, width=8, num_classes=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(1, options.num_steps + 1):
        features, adjacency, labels = chains(16, options.length, generator)
        logits, evaluations = model(features, adjacency)
        loss = nn.functional.cross_entropy(logits[:, -1], labels)  # read at the last node, far from the label
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == options.num_steps:
            accuracy = (logits[:, -1].argmax(-1) == labels).float().mean()
            print(
                f"step {step}: loss {loss:.3f}, accuracy {accuracy:.2f}, evaluations {evaluations.float().mean():.0f}"
            )


if __name__ == "__main__":
    main()
