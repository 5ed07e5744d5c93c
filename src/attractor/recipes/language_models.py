"""Language models of several sizes: the attractor and three baselines of the same size.

The size fixes the shape, see ``sizes.py``. The settings of training follow from it:

* heads of 128 channels (64 if the width is below 512), as in the paper;
* SwiGLU of 8/3 of the width, rounded up to 64: as many weights as the paper's squared ReLU of 4 times the width;
* rows of 2,048 tokens and 524,288 tokens a step from ``60m`` up; ``tiny`` trains for minutes on a laptop;
* training tokens: 80 per weight from 140M to 770M, and a billion at 60M;
* Muon at 8e-3 on the matrices inside layers, and at half of it on the attractor's; AdamW on the rest. AdamW's rate
  falls with the square root of the width, because the change of a logit grows with the width;
* weight decay 0.2 on Muon's matrices, which falls to 0 during the run; no warm-up; the rate falls over the last half;
* a step is skipped if its loss is eight standard deviations above the last hundred, or its gradient twenty times
  theirs.

From ``140m`` to ``770m``, only the shapes and the settings of a solve are the paper's (arXiv:2605.12466). The
tokenizer, the MLP, the optimiser and its settings are this project's, and no run of these sizes has been made with
them. The family ``paper`` follows the paper and the authors' configurations in the MLP, the injection, the gradient,
the start of the attractor's layers, the optimisers' rates and their division, and the tokens.
"""

import math
from dataclasses import field, replace
from typing import Any

from attractor.config import change, config_class, require_positive, suggestion
from attractor.errors import ConfigError
from attractor.models.language import AttractorConfig, LoopedConfig
from attractor.objectives import NextTokenConfig
from attractor.optim import OptimizerConfig
from attractor.recipes.sizes import LANGUAGE_FAMILIES, SIZES, VOCAB_SIZE
from attractor.training import GuardConfig, TrainConfig

BATCH_TOKENS = 524_288
BACKBONE = "backbone"  # in train.freeze: all parameters outside the attractor's layers
IN_LAYERS = r"\.layers\.\d+\..*_proj\.weight$"


@config_class
class LanguageRecipe:
    """All settings of a run on text.

    ``model.vocab_size`` and the special tokens are replaced by those of the prepared text.

    Attributes
    ----------
    attractor_rate
        The fraction of the learning rate for the attractor's layers of a model that also has backbone layers.
    epochs
        Another limit of the run: passes over the rows of the data. None: no such limit.
    """

    model: AttractorConfig | LoopedConfig
    attractor_rate: float = 0.5
    epochs: float | None = None
    text: NextTokenConfig = field(default_factory=NextTokenConfig)
    train: TrainConfig

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimiser's settings, with the learning rate of the attractor's layers."""
        if self._num_attractor_layers in (0, self.model.num_hidden_layers):  # no attractor layers, or nothing else
            return self.train.optimizer
        return replace(self.train.optimizer, slow_pattern=self._attractor_pattern, slow_factor=self.attractor_rate)

    def num_steps(self, num_rows: int) -> int | None:
        """Return the limit in steps for data of ``num_rows`` rows."""
        if self.epochs is None:
            return self.train.num_steps
        steps = max(1, math.ceil(self.epochs * num_rows / (self.text.batch_size * self.train.accumulate)))
        return min(steps, self.train.num_steps or steps)

    @property
    def freeze(self) -> str:
        """The regular expression of ``train.freeze``."""
        if self.train.freeze != BACKBONE:
            return self.train.freeze
        if not self._num_attractor_layers:
            raise ConfigError("train.freeze='backbone': this model has no attractor layers, which would be trained.")
        return f"^(?!.*{self._attractor_pattern})"

    @property
    def _num_attractor_layers(self) -> int:
        return getattr(self.model, "num_attractor_layers", 0)

    @property
    def _attractor_pattern(self) -> str:
        last = self.model.num_hidden_layers
        layers = "|".join(str(i) for i in range(last - self._num_attractor_layers, last))
        return rf"(?:\.layers\.(?:{layers})|\.injection)\."

    def __post_init__(self) -> None:
        require_positive(self, "attractor_rate", *(["epochs"] if self.epochs is not None else []))
        if self.text.length > self.model.max_position_embeddings:
            raise ConfigError(
                f"text.length={self.text.length} exceeds model.max_position_embeddings="
                f"{self.model.max_position_embeddings}; lower text.length or raise model.max_position_embeddings."
            )


def language(size: str, family: str = "attractor") -> LanguageRecipe:
    """Return the recipe for a size of ``SIZES`` and a family. Raises ConfigError if there is none.

    The families are ``"attractor"``, ``"transformer"`` (the same layers, each used once), ``"looped"`` (half of the
    layers in a loop), ``"deq"`` (all layers are the attractor, and solves start from zero) and ``"paper"`` (the attractor
    with the paper's settings). All have the same depth, width and weights, except for the attractor's gates, the looped
    model's injection and the rounding of the MLP's width.
    """
    if size not in SIZES:
        raise ConfigError(f"there is no size {size!r}; {suggestion(size, SIZES)}")
    if family not in LANGUAGE_FAMILIES:
        raise ConfigError(f"there is no family {family!r}; {suggestion(family, LANGUAGE_FAMILIES)}")
    if family == "paper":
        return _as_published(language(size), size)
    chosen = SIZES[size]
    shape: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": chosen.width,
        "intermediate_size": chosen.hidden,
        "num_hidden_layers": chosen.num_layers,
        "num_attention_heads": chosen.num_heads,
        "max_position_embeddings": chosen.length,
    }
    model: AttractorConfig | LoopedConfig
    if family == "looped":  # half of the layers in the loop, the others before and after it
        num_core = max(1, chosen.num_layers // 2)
        model = LoopedConfig(num_core_layers=num_core, num_coda_layers=(chosen.num_layers - num_core) // 2, **shape)
    else:
        model = AttractorConfig(
            num_attractor_layers={"transformer": 0, "deq": chosen.num_layers}.get(family, chosen.num_attractor_layers),
            start="zero" if family == "deq" else "proposal",
            tolerance=chosen.tolerance,
            min_evaluations=chosen.min_evaluations,
            max_evaluations=chosen.max_evaluations,
            gate_start=chosen.gate_start,
            gate_limit=chosen.gate_limit,
            **shape,
        )
    recipe = LanguageRecipe(
        model=model,
        text=NextTokenConfig(batch_size=16, length=chosen.length),
        train=TrainConfig(
            num_steps=round(chosen.tokens_per_weight * chosen.num_weights / BATCH_TOKENS),
            optimizer=OptimizerConfig(
                lr=round(3e-3 * (256 / chosen.width) ** 0.5, 6),
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
            accumulate=BATCH_TOKENS // (16 * chosen.length),
            precision="bf16",
            guard=GuardConfig(loss_spike=8, gradient_spike=20),
            log_every=10,
            checkpoint_every=500,
        ),
    )
    if size != "tiny":
        return recipe
    return replace(recipe, train=replace(recipe.train, num_steps=900, accumulate=1, log_every=20))


# Of the authors' configurations: the rates of AdamW and Muon, the attractor's fraction of them, the gradient, other
# settings of the solve, and tokens. There is none of 60M; it and tiny have those of 140M. The file that they name 1.3b
# has 26 layers of width 1,536, which are 786M weights; its shape is not taken.
SOLVE_13B = {"tolerance": 1e-4, "min_evaluations": 8, "max_evaluations": 64, "gate_start": 0.5, "gate_limit": 1.0}
AUTHORS: dict[str, tuple[float, float, float, str, dict[str, Any], float]] = {
    "140m": (8e-3, 8e-3, 0.5, "neumann", {}, 11.2e9),
    "370m": (8e-3, 8e-3, 0.4, "neumann", {}, 29.6e9),
    "770m": (5e-3, 6e-3, 0.4, "implicit", {"mixing": 0.96}, 61.6e9),
    "1.3b": (4e-3, 4e-3, 0.75, "neumann", SOLVE_13B, 104e9),
}


def _as_published(recipe: LanguageRecipe, size: str) -> LanguageRecipe:
    """Return an attractor's recipe with the MLP, the injection, the gradient and the optimisers of the authors' code.

    AdamW trains the attractor's layers. What differs from the paper still is in docs/language.md.
    """
    lr, muon_lr, rate, gradient, model, tokens = AUTHORS.get(size, AUTHORS["140m"])
    recipe = change(recipe, {"model": model})
    shape: Any = recipe.model
    backbone = "|".join(str(i) for i in range(shape.num_hidden_layers - shape.num_attractor_layers))
    pattern = rf"\.layers\.({backbone})\..*_proj\.weight$"
    published: LanguageRecipe = change(
        recipe,
        {
            "attractor_rate": rate,
            "model": {
                "intermediate_size": 4 * shape.hidden_size,
                "hidden_act": "relu2",
                "rms_norm_eps": 1e-5,
                "injection": "sum",
                "gradient": gradient,
                "zero_init_attractor": False,
            },
            "train": {
                "optimizer": {"lr": lr, "muon_lr": muon_lr, "muon_pattern": pattern},
                "num_steps": round(tokens / BATCH_TOKENS) if size in AUTHORS else recipe.train.num_steps,
            },
        },
    )
    return published


def retrofit(*, freeze: str = "", distillation: float = 0.0) -> LanguageRecipe:
    """Return the recipe that trains a retrofitted checkpoint; :func:`fit_to_model` sets its model.

    ``freeze`` and ``distillation`` are its ``train.freeze`` and ``text.distillation``.

    AdamW, because the backbone's own optimiser is unknown, at a rate that is usual for continued training, the same for
    all layers. The contraction penalty costs six more evaluations a step, two of them with gradients; the update then
    contracts faster at the same loss.
    """
    return LanguageRecipe(
        model=AttractorConfig(),
        attractor_rate=1.0,
        text=NextTokenConfig(batch_size=8, length=1024, contraction_penalty=0.3, distillation=distillation),
        train=TrainConfig(
            num_steps=1000,
            freeze=freeze,
            optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.0),
            warmup_fraction=0.05,
            ema_decay=0.0,
            accumulate=4,
            precision="bf16",
            log_every=10,
        ),
    )


def chat() -> LanguageRecipe:
    """Return the recipe that tunes a checkpoint on conversations: two passes over them, at a fifth of the rate of
    :func:`retrofit`, because there are few of them and the model can speak already."""
    recipe = retrofit()
    changes = {"optimizer": {"lr": 2e-5}, "num_steps": 100_000, "accumulate": 1, "checkpoint_every": 100}
    tuned: LanguageRecipe = change(recipe, {"epochs": 2.0, "train": changes})
    return tuned


def fit_to_model(recipe: LanguageRecipe, model: AttractorConfig | LoopedConfig) -> LanguageRecipe:
    """Return ``recipe`` for an existing model, without its budget, with rows no longer than the model's positions."""
    length = min(recipe.text.length, model.max_position_embeddings)
    return replace(recipe, model=change(model, {"budget": None}), text=replace(recipe.text, length=length))
