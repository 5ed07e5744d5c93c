"""Every table and figure of "Solve the Loop" (arXiv:2605.12466) as data: its sides, what is measured, the paper's values.

A side is a recipe with changes; items share sides, and each side is trained once. Tables 1 to 6 have the paper's
numbers. Of Table 5 the paper's text gives the implicit gradient only, and of Table 6 the proposal only. Figures 1 and 4
to 7 are what the paper's text says they show. It refers to no Figure 2 and no Figure 3: ``figure2`` and ``figure3`` are
ours.

Different from the paper in all language sides: no value embeddings, PyTorch's Muon, and what docs/language.md lists.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from attractor.config import change
from attractor.recipes import LanguageRecipe, PuzzleRecipe, language, published, sudoku
from attractor.recipes.puzzles import WIDTHS_27M, MazeDataConfig

# A recipe's size and the changes of a scale. "tiny" trains a side in about a minute of one core.
SMALL = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "max_position_embeddings": 64}
TINY: dict[str, Any] = {
    "model": SMALL | {"max_evaluations": 16, "tolerance": 1e-3},
    "text": {"batch_size": 8, "length": 64},
    "train": {"num_steps": 200, "precision": "fp32", "log_every": 5, "optimizer": {"lr": 6e-3}},
}
SCALES = {"tiny": ("tiny", TINY), "small": ("tiny", {})} | {s: (s, {}) for s in ("60m", "140m", "370m", "770m", "1.3b")}
REFERENCE = "one-step"  # memory and time are divided by this side's


@dataclass(frozen=True)
class Side:
    """A language model: a family of ``language(size, family)`` and its changes, a function of the model's settings."""

    label: str
    family: str = "paper"
    changes: Callable[[Any], dict[str, Any]] = lambda model: {}


def _half(model: Any) -> dict[str, Any]:
    heads = max(1, model.num_attention_heads // 2)
    sizes = {"hidden_size": model.hidden_size // 2, "intermediate_size": model.intermediate_size // 2}
    return {"model": sizes | {"num_attention_heads": heads}}


def _deq(**settings: Any) -> Callable[[Any], dict[str, Any]]:
    # All layers are solved, and AdamW trains them, as it trains the attractor's.
    return lambda model: {
        "model": {"num_attractor_layers": model.num_hidden_layers, "start": "zero", **settings},
        "train": {"optimizer": {"muon_pattern": ""}},
    }


def _model(**settings: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda model: {"model": settings}


LANGUAGE = {
    "attractor": Side("attractor as published"),
    "transformer": Side("plain, the same layers once", "transformer"),
    "deeper": Side(
        "plain, half as many layers more",
        "transformer",
        lambda model: {"model": {"num_hidden_layers": model.num_hidden_layers * 3 // 2}},
    ),
    "looped": Side("looped (Parcae)", "looped"),
    "deq": Side("DEQ, tied head", changes=_deq()),
    "deq-untied": Side("DEQ, own head", changes=_deq(tie_word_embeddings=False)),
    "none": Side("proposal as the start only", changes=_model(injection="none")),
    "concat": Side("concatenation", changes=_model(injection="concat")),
    "mean": Side("ours: mean", changes=_model(injection="mean")),
    "one-step": Side("one-step", changes=_model(gradient="one-step")),
    "phantom": Side("phantom, 4 steps", changes=_model(gradient="phantom")),
    "implicit": Side("implicit", changes=_model(gradient="implicit")),
    "zero": Side("start: zero", changes=_model(start="zero")),
    "gaussian": Side("start: Gaussian noise", changes=_model(start="gaussian")),
    "attractor-half": Side("attractor, half the width", changes=_half),
    "transformer-half": Side("plain, half the width", "transformer", _half),
    "looped-half": Side("looped, half the width", "looped", _half),
}
WIDE = "-wide"
REASONERS = {
    "reasoner-transformer-wide": "Transformer, 27M",
    "reasoner-hrm-wide": "HRM, 27M",
    "reasoner-trm": "TRM, 7M",
    "reasoner-trm-wide": "TRM, 27M",
    "reasoner-paper": "attractor as in the paper, 7M",
    "reasoner-paper-wide": "attractor as in the paper, 27M",
    "reasoner-attractor": "ours: attractor, 7M",
    "reasoner-attractor-wide": "ours: attractor, 27M",
}
LABELS = {name: side.label for name, side in LANGUAGE.items()} | REASONERS


def language_recipe(name: str, scale: str, seed: int) -> LanguageRecipe:
    """Return the recipe of a language side. The paper's MLP is in all of them."""
    (size, shape), side = SCALES[scale], LANGUAGE[name]
    recipe = language(size, side.family)
    width = recipe.model.hidden_size
    recipe = change(recipe, {"model": {"hidden_act": "relu2", "intermediate_size": 4 * width}})
    solve = () if side.family in ("paper", "transformer") else ("max_evaluations", "tolerance")
    model = {key: value for key, value in shape.get("model", {}).items() if key not in solve}
    recipe = change(recipe, shape | {"model": model})
    recipe = change(recipe, side.changes(recipe.model))
    seeded: LanguageRecipe = change(recipe, {"text": {"seed": seed}, "train": {"seed": seed, "checkpoint_every": 0}})
    return seeded


def reasoner_recipe(name: str, task: str, scale: str, seed: int) -> PuzzleRecipe:
    """Return the recipe of a reasoner on ``task``: at ``tiny``, small puzzles and widths 64 and 128 for 7M and 27M."""
    family, is_wide = name.removeprefix("reasoner-").removesuffix(WIDE), name.endswith(WIDE)
    if scale != "tiny":
        return published(task, family, width=WIDTHS_27M[task] if is_wide and family == "trm" else 512, seed=seed)
    width = 128 if is_wide else 64
    recipe: Any = sudoku(6, family, seed=seed)
    network = {"network": {"width": width, "hidden": 2 * width}}
    recipe = change(recipe, {"model": {"update": network} if hasattr(recipe.model, "update") else network})
    data = {"data": {"clues": 18}} if task == "sudoku" else {"data": MazeDataConfig(size=9, seed=seed)}
    length = {"seconds": None, "num_steps": 150, "precision": "fp32", "optimizer": {"lr": 2e-3 * 128 / width}}
    small: PuzzleRecipe = change(recipe, data | {"supervision": {"batch_size": 16}, "train": length | {"seed": seed}})
    return small


@dataclass(frozen=True)
class Item:
    """One table or figure. ``published`` are the paper's values by side and column, for one size or for several."""

    title: str
    sides: tuple[str, ...]
    columns: tuple[str, ...]
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    by_scale: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    note: str = ""


def _rows(columns: str, **rows: tuple[float | None, ...]) -> dict[str, dict[str, float]]:
    """Return the values of the columns that are known, by side; ``_`` in a name of ``rows`` stands for ``-``."""
    return {
        side.replace("_", "-"): {c: v for c, v in zip(columns.split(), row, strict=False) if v is not None}
        for side, row in rows.items()
    }


_QUALITY = "ppl lambada_ppl core"
_AT_140M = _rows(
    _QUALITY, transformer=(21.48, 127.39, 13.00), looped=(19.06, 80.64, 14.04), attractor=(18.30, 68.02, 14.59)
)
_SCALING = {
    "370m": _rows(
        _QUALITY, transformer=(15.79, 40.77, 17.46), looped=(14.49, 32.74, 20.0), attractor=(14.03, 27.14, 20.24)
    ),
    "770m": _rows(
        _QUALITY, transformer=(13.08, 22.37, 22.42), looped=(12.49, 19.71, 25.07), attractor=(12.09, 15.21, 26.83)
    ),
}
_ABLATION = ("ppl", "bits_per_byte", "evaluations", "converged", "training_flops", "equal_flops")
_MODELS = ("transformer", "looped", "attractor")
ITEMS = {
    "table1": Item(
        "language models of three sizes",
        ("transformer", "deeper", "looped", "attractor"),
        ("ppl", "bits_per_byte", "lambada_ppl", "core", "weights", "training_flops", "equal_flops"),
        _AT_140M,
        _SCALING,
        "The paper's values at scales below 140m are those of 140M. Its Transformer has about half of its weights in lookup "
        "tables; `plain` has the attractor's layers instead.",
    ),
    "table2": Item(
        "reasoning: puzzles right in every cell",
        tuple(REASONERS),
        ("sudoku", "maze", "weights"),
        _rows(
            "sudoku maze",
            reasoner_transformer_wide=(0.0, 0.0),
            reasoner_hrm_wide=(55.0, 74.5),
            reasoner_trm=(74.7, 85.3),
            reasoner_trm_wide=(0.0, 0.0),
            reasoner_paper=(54.3, 46.7),
            reasoner_paper_wide=(91.4, 93.1),
        ),
        note="The paper's puzzles are Sudoku-Extreme and Maze-Hard; at tiny they are 6 × 6 Sudokus with 18 clues and mazes of "
        "9 × 9, and 7M and 27M stand for widths 64 and 128.",
    ),
    "table3": Item(
        "attractor against deep equilibrium models",
        ("deq-untied", "deq", "attractor", "transformer"),
        _ABLATION,
        _rows("ppl bits_per_byte evaluations converged", deq_untied=(42.18,), deq=(38.74,))
        | _rows("ppl", attractor=(34.05,)),
        note="The paper: the attractor converges in 1.7 times fewer iterations.",
    ),
    "table4": Item(
        "how the proposal enters the update",
        ("none", "concat", "attractor", "mean", "transformer"),
        _ABLATION,
        _rows(
            "ppl evaluations converged",
            none=(51.92, None, 12.4),
            concat=(36.81, 11.2, None),
            attractor=(34.05, 8.4, 99.7),
        ),
    ),
    "table5": Item(
        "the backward pass",
        ("one-step", "attractor", "phantom", "implicit", "transformer"),
        ("ppl", "bits_per_byte", "evaluations", "memory", "step_time", "training_flops", "equal_flops"),
        _rows("ppl memory step_time", one_step=(34.05, 1.0, 1.0), implicit=(33.91, 4.8, 2.7)),
        note="Memory and time of a step are relative to `one-step`. The attractor takes one term of the Neumann series, which the "
        "authors' code names one-step; from 770m it is the implicit one.",
    ),
    "table6": Item(
        "the start of the solve",
        ("zero", "gaussian", "attractor", "transformer"),
        _ABLATION,
        _rows("ppl evaluations", attractor=(34.05, 8.4)),
        note="The paper: starts from zero or noise are substantially worse and converge more slowly.",
    ),
    "figure1": Item(
        "perplexity against weights",
        (*_MODELS, *(f"{name}-half" for name in _MODELS)),
        ("weights", "ppl", "bits_per_byte"),
        _AT_140M,
        _SCALING,
    ),
    "figure2": Item("ours: reasoners against weights", tuple(REASONERS), ("weights", "sudoku", "maze")),
    "figure3": Item(
        "ours: training loss against tokens and FLOPs",
        ("transformer", "deeper", "looped", "attractor", "deq"),
        ("ppl", "training_flops", "equal_flops"),
    ),
    "figure4": Item(
        "training FLOPs",
        _MODELS,
        ("training_flops", "calls"),
        note="The paper: 25 to 31 % fewer FLOPs than the looped model.",
    ),
    "figure5": Item(
        "peak memory of a training step against evaluations",
        (),
        ("memory_4", "memory_16", "memory_64"),
        note="In MB. The paper: constant for the attractor, linear for the looped model.",
    ),
    "figure6": Item(
        "convergence: states of tokens, and evaluations during training",
        ("attractor", "looped", "deq"),
        ("calls", "first_calls"),
        note="The paper: the attractor's evaluations fall to the minimum, those of the DEQ grow.",
    ),
    "figure7": Item(
        "perplexity against evaluations at test time",
        ("attractor", "looped"),
        ("ppl_0", "ppl_1", "ppl_2", "ppl_4", "ppl_8", "ppl"),
        note="The paper: best at one evaluation, nearly as good at none; the looped model needs about 8.",
    ),
}
