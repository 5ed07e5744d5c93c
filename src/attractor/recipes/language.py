"""Language models of one ladder of sizes: the attractor and, from the same dial, its three baselines.

The dial is the size's name. It fixes width, layers and how they are divided between backbone and attractor, after the paper
(arXiv:2605.12466); everything else follows:

* heads of 128 channels (64 where the width is below 512), as in the paper, an attention kernel's favourite;
* SwiGLU of 8/3 of the width, rounded up to 64: as many weights as the paper's squared ReLU of 4 times the width;
* rows of 2,048 tokens and 524,288 tokens a step from ``60m`` up, the paper's; ``tiny`` trains on what a laptop does in minutes;
* training tokens: 80 per weight, the paper's ratio from 140M to 770M, and a billion for its ablations at 60M;
* Muon at 8e-3 on the matrices inside layers, the attractor's at half of it; AdamW on the rest at a rate that falls with the square
  root of the width, as the size of a logit's change under it grows with the width;
* weight decay 0.2 on Muon's matrices, falling to 0 with the run; no warm-up; the rate falls over the last half;
* steps whose loss lies eight deviations above the last hundred, or whose gradient is twenty times theirs, are left out.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from attractor.config import require_positive, suggestion
from attractor.errors import ConfigError
from attractor.models.language import AttractorConfig, LanguageModelConfig, LoopedConfig
from attractor.objectives import NextTokenConfig
from attractor.optim import OptimizerConfig
from attractor.training import GuardConfig, TrainConfig

VOCAB_SIZE = 32768
BATCH_TOKENS = 524_288
IN_LAYERS = r"\.layers\.\d+\..*_proj\.weight$"


@dataclass(frozen=True, kw_only=True)
class LanguageRecipe:
    """Everything about a run on text. ``model.vocab_size`` and the special tokens become the prepared text's.

    ``attractor_rate`` is the share of the learning rate at which the attractor's layers learn beside a backbone.
    """

    model: LanguageModelConfig
    attractor_rate: float = 0.5
    text: NextTokenConfig = field(default_factory=NextTokenConfig)
    train: TrainConfig

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimiser, with the attractor's layers, wherever they begin, at their own rate."""
        first, last = getattr(self.model, "num_attractor_layers", 0), self.model.num_hidden_layers
        if first in (0, last):  # nothing, or everything
            return self.train.optimizer
        layers = "|".join(str(i) for i in range(last - first, last))
        return replace(self.train.optimizer, slow_pattern=rf"\.layers\.({layers})\.", slow_factor=self.attractor_rate)

    def __post_init__(self) -> None:
        require_positive(self, "attractor_rate")
        if self.text.length > self.model.max_position_embeddings:
            raise ConfigError(
                f"text.length={self.text.length} exceeds model.max_position_embeddings="
                f"{self.model.max_position_embeddings}; raise the one or lower the other."
            )


@dataclass(frozen=True, kw_only=True)
class Size:
    """One notch of the dial. ``tolerance``, evaluations and gates are the paper's."""

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
        """In all matrices of the attractor and of the plain Transformer with as many layers; the embedding is tied."""
        return self.num_layers * (4 * self.width**2 + 3 * self.width * self.hidden) + VOCAB_SIZE * self.width


SIZES = {
    # bf16 on a CPU cannot resolve a residual below about 1e-3
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
FAMILIES = ("attractor", "transformer", "looped", "deq")


def language(size: str, family: str = "attractor") -> LanguageRecipe:
    """Return the recipe of a size and a family of models.

    All families have the same layers, so depth, width and weights are equal but for the gates (two per channel and attractor
    layer) and the looped model's injection.
    """
    if size not in SIZES:
        raise ConfigError(f"there is no size {size!r}; {suggestion(size, SIZES)}")
    if family not in FAMILIES:
        raise ConfigError(f"there is no family {family!r}; {suggestion(family, FAMILIES)}")
    dial = SIZES[size]
    num_attractor = {"transformer": 0, "deq": dial.num_layers}.get(family, dial.num_attractor_layers)
    shape: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": dial.width,
        "intermediate_size": dial.hidden,
        "num_hidden_layers": dial.num_layers,
        "num_attention_heads": dial.num_heads,
        "max_position_embeddings": dial.length,
    }
    model: LanguageModelConfig
    if family == "looped":  # half of the layers in the loop, the rest before and after it
        num_core = max(1, dial.num_layers // 2)
        model = LoopedConfig(num_core_layers=num_core, num_coda_layers=(dial.num_layers - num_core) // 2, **shape)
    else:
        model = AttractorConfig(
            num_attractor_layers=num_attractor,
            start="zero" if family == "deq" else "proposal",
            tolerance=dial.tolerance,
            min_evaluations=dial.min_evaluations,
            max_evaluations=dial.max_evaluations,
            gate_start=dial.gate_start,
            gate_limit=dial.gate_limit,
            **shape,
        )
    recipe = LanguageRecipe(
        model=model,
        text=NextTokenConfig(batch_size=16, length=dial.length),
        train=TrainConfig(
            num_steps=round(dial.tokens_per_weight * dial.num_weights / BATCH_TOKENS),
            optimizer=OptimizerConfig(
                lr=round(3e-3 * (256 / dial.width) ** 0.5, 6),
                weight_decay=0.0,
                beta1=0.8,
                beta2=0.95,
                eps=1e-10,
                muon_pattern=IN_LAYERS,
                muon_lr=8e-3,
                muon_weight_decay=0.2,
                final_weight_decay=0.0,
            ),
            warmup_fraction=0.0,
            cooldown_fraction=0.5,
            ema_decay=0.0,
            accumulate=BATCH_TOKENS // (16 * dial.length),
            precision="bf16",
            guard=GuardConfig(loss_spike=8, gradient_spike=20),
            log_every=10,
            checkpoint_every=500,
        ),
    )
    if size != "tiny":
        return recipe
    return replace(recipe, train=replace(recipe.train, num_steps=900, accumulate=1, log_every=20))


def retrofit() -> LanguageRecipe:
    """Return the run that teaches a retrofitted checkpoint to settle; :func:`started_from` puts its model in.

    AdamW, as the backbone's own optimiser is unknown, at a rate usual for continued training; all layers learn alike. The penalty
    takes six evaluations more a step, two of them tracked, and leaves a margin: the map contracts faster at the same loss.
    """
    return LanguageRecipe(
        model=AttractorConfig(),
        attractor_rate=1.0,
        text=NextTokenConfig(batch_size=8, length=1024, contraction_penalty=0.3),
        train=TrainConfig(
            num_steps=1000,
            optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.0),
            warmup_fraction=0.05,
            ema_decay=0.0,
            accumulate=4,
            precision="bf16",
            log_every=10,
        ),
    )


def started_from(recipe: LanguageRecipe, model: LanguageModelConfig) -> LanguageRecipe:
    """Return ``recipe`` for a model that exists, with rows no longer than it knows positions for."""
    length = min(recipe.text.length, model.max_position_embeddings)
    return replace(recipe, model=model, text=replace(recipe.text, length=length))
