"""The sizes of language models. One size fixes the width, the layers and their division into backbone and attractor."""

from dataclasses import dataclass, replace

VOCAB_SIZE = 32768
LANGUAGE_FAMILIES = ("attractor", "transformer", "looped", "deq", "paper")


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size. From ``140m`` to ``770m``, the shape and the settings of a solve are the paper's (arXiv:2605.12466).

    The paper trains 60M and 1.3B too; of those, the shapes are ours.
    """

    width: int
    num_backbone_layers: int
    num_attractor_layers: int
    length: int = 2048
    tolerance: float = 3e-4
    min_evaluations: int = 6
    max_evaluations: int = 64
    gate_start: float = 0.75
    gate_limit: float = 1.0
    tokens_per_weight: float = 80

    @property
    def num_layers(self) -> int:
        return self.num_backbone_layers + self.num_attractor_layers

    @property
    def num_heads(self) -> int:
        return self.width // (128 if self.width >= 512 else 64)

    @property
    def hidden(self) -> int:
        return -(-8 * self.width // 3 // 64) * 64

    @property
    def num_weights(self) -> int:
        """Weights in all matrices of the attractor, and of the Transformer with as many layers; the embedding is tied."""
        return self.num_layers * (4 * self.width**2 + 3 * self.width * self.hidden) + VOCAB_SIZE * self.width


SIZES = {
    # On a CPU, bf16 cannot resolve a residual below about 1e-3.
    "tiny": Size(
        width=256,
        num_backbone_layers=3,
        num_attractor_layers=1,
        length=256,
        tolerance=3e-3,
        min_evaluations=2,
        max_evaluations=16,
    ),
    "60m": Size(width=640, num_backbone_layers=7, num_attractor_layers=1, tokens_per_weight=16.5),
    "140m": Size(width=1024, num_backbone_layers=7, num_attractor_layers=1, gate_limit=0.75),
    "370m": Size(width=1280, num_backbone_layers=15, num_attractor_layers=2, tolerance=2e-4, min_evaluations=8),
    "770m": Size(
        width=1280,
        num_backbone_layers=35,
        num_attractor_layers=2,
        tolerance=1.5e-4,
        max_evaluations=32,
        gate_start=0.73,
        gate_limit=0.9,
    ),
}
SIZES["1.3b"] = replace(SIZES["770m"], width=2048, num_backbone_layers=22)
