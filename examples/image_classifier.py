"""An implicit convolutional layer in an image classifier, on generated images of bars, crosses and squares.

The feature map is the equilibrium of one small convolutional update. One equation is the complete feature map of an image.

    python examples/image_classifier.py --num-steps 100
"""

import argparse

import torch
from torch import Tensor, nn

from attractor import FixedPoint, Neumann, Tolerance

SHAPES = ("horizontal bar", "vertical bar", "cross", "square")


def draw_images(num: int, generator: torch.Generator, size: int = 12) -> tuple[Tensor, Tensor]:
    """Return noisy images (num, 1, size, size) and the shape in each (num,)."""
    labels = torch.randint(len(SHAPES), (num,), generator=generator)
    rows, columns = torch.randint(4, size - 4, (2, num), generator=generator).tolist()
    images = 0.3 * torch.randn(num, 1, size, size, generator=generator)
    for image, label, r, c in zip(images[:, 0], labels.tolist(), rows, columns, strict=True):
        if label in (0, 2):
            image[r, c - 3 : c + 4] += 1
        if label in (1, 2):
            image[r - 3 : r + 4, c] += 1
        if label == 3:
            image[r - 2 : r + 3, c - 2 : c + 3] += 0.6
    return images, labels


class Cell(nn.Module):
    """One update of a feature map: a normalised residual convolution, with the image injected at every evaluation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(2, width)

    def forward(self, y: Tensor, injected: Tensor) -> Tensor:
        return injected + 0.5 * torch.tanh(self.norm(self.inner(y)))  # (B, width, H, W)


class Classifier(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        stop = Tolerance(rtol=1e-2, max_evaluations=30)
        self.layer = FixedPoint(Cell(width), stop=stop, gradient=Neumann(2), equation_dims=3)
        self.head = nn.Linear(width, len(SHAPES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, 4) and evaluations (B,)."""
        injected = self.stem(images)
        solution = self.layer(torch.zeros_like(injected), injected)
        return self.head(solution.value.relu().amax(dim=(2, 3))), solution.evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=100)
    num_steps = parser.parse_args().num_steps
    generator = torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(1, num_steps + 1):
        images, labels = draw_images(32, generator)
        logits, evaluations = model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0 or step == num_steps:
            accuracy, depth = (logits.argmax(-1) == labels).float().mean(), evaluations.float().mean()
            print(f"step {step}: loss {loss:.3f}, accuracy {accuracy:.2f}, evaluations {depth:.1f}")


if __name__ == "__main__":
    main()
