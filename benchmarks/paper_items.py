"""Every table and figure of "Solve the Loop" (arXiv:2605.12466) as data: its sides, what is measured, the paper's values.

A side is a recipe with changes; items share sides, and each side is trained once. Tables have the paper's numbers; its
text gives no values for the phantom gradient of Table 5 and for the other starts of Table 6. Figures 1 and 4 to 7 hold
what the paper's text says of them. It refers to no Figure 2 and no Figure 3: ``figure2`` and ``figure3`` are ours.
What differs from the paper in all language sides is in docs/language.md.
"""

from dataclasses import dataclass, field
from typing import Any

from attractor.config import change
from attractor.recipes import LanguageRecipe, PuzzleRecipe, language, published, sudoku
from attractor.recipes.puzzles import WIDTHS_27M, MazeDataConfig

SMALL = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "max_position_embeddings": 64}
TINY: dict[str, Any] = {  # a side trains in about half a minute of an idle core
    "model": SMALL | {"max_evaluations": 16, "tolerance": 1e-3},
    "text": {"batch_size": 8, "length": 64},
    "train": {"num_steps": 200, "precision": "fp32", "log_every": 5, "optimizer": {"lr": 6e-3}},
}
SCALES = {"tiny": ("tiny", TINY), "small": ("tiny", {})} | {s: (s, {}) for s in ("60m", "140m", "370m", "770m", "1.3b")}
DEPTHS = (0, 1, 2, 4, 8)  # of figure7
EVALUATIONS = (4, 16, 64)  # forced, for figure5
REFERENCE = "one-step"  # memory and time are divided by this side's


COLUMNS = {  # heading, digits, unit
    "ppl": ("perplexity", 2, 1), "bits_per_byte": ("bits per byte", 4, 1), "lambada_ppl": ("LAMBADA perplexity", 0, 1),
    "core": ("CORE, %", 2, 0.01), "core_extended": ("CORE-Extended, %", 2, 0.01),
    "evaluations": ("evaluations", 1, 1), "converged": ("converged, %", 1, 0.01),
    "weights": ("weights, millions", 3, 1e6), "training_flops": ("training TFLOP", 2, 1e12),
    "equal_flops": ("loss at equal FLOPs", 3, 1), "memory": ("memory of a step", 2, 1), "step_time": ("time", 2, 1),
    "sudoku": ("Sudoku, %", 1, 0.01), "maze": ("maze, %", 1, 0.01),
    "first_calls": ("evaluations, first tenth of training", 1, 1), "calls": ("evaluations, last tenth", 1, 1),
} | {f"ppl_{d}": (f"perplexity after {d}", 2, 1) for d in DEPTHS} | {
    f"memory_{n}": (f"{n} evaluations", 0, 1e6) for n in EVALUATIONS
}  # fmt: skip
AXES = {
    "ppl": "perplexity of held-out text", "bytes": "peak bytes of a step",
    "flops": "training FLOPs", "loss": "training loss, nats per token", "step": "training step, with equal tokens",
    "calls": "evaluations in training", "depth": "evaluations at test time", "forced": "evaluations in training",
    "x": "first principal component, 16 evaluations", "y": "second principal component",
    "sudoku": "Sudokus right in every cell", "maze": "mazes right in every cell",
}  # fmt: skip


def _half(model: Any) -> dict[str, int]:
    sizes = {name: getattr(model, name) // 2 for name in ("hidden_size", "intermediate_size")}
    return sizes | {"num_attention_heads": max(1, model.num_attention_heads // 2)}


# Label, family of language(size, family), and the changes of the model: settings, or a function of the model's.
LANGUAGE: dict[str, tuple[str, str, Any]] = {
    "attractor": ("attractor as published", "paper", {}),
    "transformer": ("plain, the same layers once", "transformer", {}),
    "deeper": (
        "plain, half as many layers more",
        "transformer",
        lambda model: {"num_hidden_layers": model.num_hidden_layers * 3 // 2},
    ),
    "looped": ("looped (Parcae)", "looped", {}),
    "deq": ("DEQ, tied head", "deq", {}),
    "deq-untied": ("DEQ, own head", "deq", {"tie_word_embeddings": False}),
    "none": ("proposal as the start only", "paper", {"injection": "none"}),
    "concat": ("concatenation", "paper", {"injection": "concat"}),
    "mean": ("ours: mean", "paper", {"injection": "mean"}),
    "one-step": ("one-step", "paper", {"gradient": "one-step"}),
    "phantom": ("phantom, 4 steps", "paper", {"gradient": "phantom"}),
    "implicit": ("implicit", "paper", {"gradient": "implicit"}),
    "zero": ("start: zero", "paper", {"start": "zero"}),
    "gaussian": ("start: Gaussian noise", "paper", {"start": "gaussian"}),
    "attractor-half": ("attractor, half the width", "paper", _half),
    "transformer-half": ("plain, half the width", "transformer", _half),
    "looped-half": ("looped, half the width", "looped", _half),
}
REASONERS = {
    "reasoner-transformer-wide": "Transformer, 27M",
    "reasoner-hrm-wide": "HRM, 27M",
    "reasoner-trm": "TRM, 7M",
    "reasoner-trm-wide": "TRM, 27M",
    "reasoner-paper": "attractor as published, 7M",
    "reasoner-paper-wide": "attractor as published, 27M",
    "reasoner-attractor": "ours: attractor, 7M",
    "reasoner-attractor-wide": "ours: attractor, 27M",
}
LABELS = {name: label for name, (label, _, _) in LANGUAGE.items()} | REASONERS


def language_recipe(name: str, scale: str, seed: int) -> LanguageRecipe:
    """Return the recipe of a language side: all have the shape, the MLP and the rates of the authors' attractor."""
    (size, shape), (_, family, changes) = SCALES[scale], LANGUAGE[name]
    recipe: Any = language(size, "paper")
    if family in ("transformer", "looped"):
        model, train = recipe.model, recipe.train
        same = ("hidden_size", "intermediate_size", "hidden_act", "num_hidden_layers", "num_attention_heads")
        optimizer = {"lr": train.optimizer.lr, "muon_lr": train.optimizer.muon_lr}
        settings = {"model": {n: getattr(model, n) for n in same}}
        settings |= {"train": {"num_steps": train.num_steps, "optimizer": optimizer}}
        recipe = change(language(size, family), settings)
    recipe = change(recipe, shape)
    if family == "deq":  # all layers are solved, from zero, and AdamW trains them, as it trains the attractor's
        layers = {"num_attractor_layers": recipe.model.num_hidden_layers, "start": "zero"}
        recipe = change(recipe, {"model": layers, "train": {"optimizer": {"muon_pattern": ""}}})
    recipe = change(recipe, {"model": changes(recipe.model) if callable(changes) else changes})
    seeded: LanguageRecipe = change(recipe, {"text": {"seed": seed}, "train": {"seed": seed, "checkpoint_every": 0}})
    return seeded


def reasoner_recipe(name: str, task: str, scale: str, seed: int) -> PuzzleRecipe:
    """Return the recipe of a reasoner on ``task``: at ``tiny``, small puzzles and widths 48 and 96 for 7M and 27M."""
    family, is_wide = name.removeprefix("reasoner-").removesuffix("-wide"), name.endswith("-wide")
    if scale != "tiny":
        is_wider = is_wide and family in ("trm", "attractor")  # the others have 27M by their layers
        width = WIDTHS_27M[task] if is_wider else 512
        return published(task, family, width=width, seed=seed)
    width = 96 if is_wide else 48
    recipe: Any = sudoku(6, family, seed=seed)
    network = {"network": {"width": width, "hidden": 2 * width}}
    recipe = change(recipe, {"model": {"update": network} if hasattr(recipe.model, "update") else network})
    data = {"data": {"clues": 18}} if task == "sudoku" else {"data": MazeDataConfig(size=9, seed=seed)}
    length = {
        "seconds": None,
        "num_steps": 500 if task == "sudoku" else 400,
        "precision": "fp32",
        "optimizer": {"lr": 2e-3 * 128 / width},
    }
    small: PuzzleRecipe = change(recipe, data | {"supervision": {"batch_size": 16}, "train": length | {"seed": seed}})
    return small


Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Item:
    """One table or figure.

    ``published`` has the paper's values by scale, side and column; a scale without values has the first ones. ``axes``
    are the x and y of each picture: columns of a side, or of a list of points in its run; and the sides that are drawn,
    by default all.
    """

    title: str
    sides: tuple[str, ...]
    columns: tuple[str, ...]
    published: dict[str, Rows] = field(default_factory=dict)
    axes: tuple[tuple[str, str, str, str], ...] = ()  # list of points, x, y, sides
    note: str = ""


def _rows(columns: str, *rows: str) -> Rows:
    """Read rows of a side and its values; ``-`` where the paper has none."""
    names = columns.split()
    return {
        side: {name: float(value) for name, value in zip(names, values, strict=True) if value != "-"}
        for side, *values in (row.split() for row in rows)
    }


_QUALITY = "ppl lambada_ppl core"
_SCALING = {
    "140m": _rows(
        _QUALITY, "transformer 21.48 127.39 13.00", "looped 19.06 80.64 14.04", "attractor 18.30 68.02 14.59"
    ),
    "370m": _rows(_QUALITY, "transformer 15.79 40.77 17.46", "looped 14.49 32.74 20.00", "attractor 14.03 27.14 20.24"),
    "770m": _rows(_QUALITY, "transformer 13.08 22.37 22.42", "looped 12.49 19.71 25.07", "attractor 12.09 15.21 26.83"),
}
_REASONING = _rows(
    "sudoku maze",
    *("reasoner-transformer-wide 0 0", "reasoner-hrm-wide 55.0 74.5", "reasoner-trm 74.7 85.3"),
    *("reasoner-trm-wide 0 0", "reasoner-paper 54.3 46.7", "reasoner-paper-wide 91.4 93.1"),
)
_ABLATION = ("ppl", "bits_per_byte", "evaluations", "converged", "training_flops", "equal_flops")
_MODELS = ("transformer", "looped", "attractor")
_PUZZLES = (
    "The paper's puzzles are Sudoku-Extreme and Maze-Hard; at tiny they are 6 × 6 Sudokus with 18 clues and mazes of "
)
_PUZZLES += "9 × 9, and 7M and 27M stand for widths 48 and 96."
ITEMS = {
    "table1": Item(
        "language models of three sizes",
        ("transformer", "deeper", "looped", "attractor"),
        ("ppl", "bits_per_byte", "lambada_ppl", "core", "core_extended", "weights", "training_flops", "equal_flops"),
        _SCALING,
        note="Scales below 140m stand beside the paper's 140M. Its Transformer has about half of its weights in lookup tables; "
        "`plain` has the attractor's layers instead.",
    ),
    "table2": Item("reasoners", tuple(REASONERS), ("sudoku", "maze", "weights"), {"": _REASONING}, note=_PUZZLES),
    "table3": Item(
        "attractor against deep equilibrium models",
        ("deq-untied", "deq", "attractor", "transformer"),
        _ABLATION,
        {"60m": _rows("ppl", "deq-untied 42.18", "deq 38.74", "attractor 34.05")},
        note="The paper: the attractor converges in 1.7 times fewer iterations.",
    ),
    "table4": Item(
        "how the proposal enters the update",
        ("none", "concat", "attractor", "mean", "transformer"),
        _ABLATION,
        {
            "60m": _rows(
                "ppl evaluations converged", "none 51.92 - 12.4", "concat 36.81 11.2 -", "attractor 34.05 8.4 99.7"
            )
        },
    ),
    "table5": Item(
        "the backward pass",
        ("one-step", "attractor", "phantom", "implicit", "transformer"),
        ("ppl", "bits_per_byte", "evaluations", "memory", "step_time", "training_flops", "equal_flops"),
        {"60m": _rows("ppl memory step_time", "one-step 34.05 1 1", "implicit 33.91 4.8 2.7")},
        note="Memory and time of a step are relative to `one-step`. The attractor takes one term of the Neumann series, which "
        "the authors' code names one-step; at 770m only, it is the implicit one.",
    ),
    "table6": Item(
        "the start of the solve",
        ("zero", "gaussian", "attractor", "transformer"),
        _ABLATION,
        {"60m": _rows("ppl evaluations", "attractor 34.05 8.4")},
        note="The paper: starts from zero or noise are substantially worse and converge more slowly.",
    ),
    "figure1": Item(
        "perplexity against weights",
        (*_MODELS, *(f"{name}-half" for name in _MODELS)),
        ("ppl", "bits_per_byte", "weights"),
        _SCALING,
        (("", "weights", "ppl", ""),),
    ),
    "figure2": Item(
        "ours: reasoners against weights",
        tuple(REASONERS),
        ("sudoku", "maze", "weights"),
        {"": _REASONING},
        (("", "weights", "sudoku", ""), ("", "weights", "maze", "")),
        _PUZZLES,
    ),
    "figure3": Item(
        "ours: training loss against tokens and FLOPs",
        ("transformer", "deeper", "looped", "attractor", "deq"),
        ("ppl", "training_flops", "equal_flops"),
        axes=(("curve", "step", "loss", ""), ("curve", "flops", "loss", "")),
    ),
    "figure4": Item(
        "training FLOPs",
        _MODELS,
        ("training_flops", "calls"),
        axes=(("curve", "step", "flops", ""),),
        note="The paper: 25 to 31 % fewer FLOPs than the looped model. All sides here have the same shape.",
    ),
    "figure5": Item(
        "peak memory of a training step against evaluations",
        (),
        ("memory_4", "memory_16", "memory_64"),
        axes=(("steps", "forced", "bytes", ""),),
        note="In MB. The paper: constant for the attractor, linear for the looped model, of which all iterations are tracked.",
    ),
    "figure6": Item(
        "convergence: states of tokens, and evaluations during training",
        ("attractor", "looped", "deq"),
        ("first_calls", "calls"),
        axes=(
            ("paths", "x", "y", "attractor"),
            ("paths", "x", "y", "looped"),
            ("curve", "step", "calls", "attractor deq"),
        ),
        note="The paper: the attractor's evaluations fall to the minimum, those of the DEQ grow.",
    ),
    "figure7": Item(
        "perplexity against evaluations at test time",
        ("attractor", "looped"),
        ("ppl_0", "ppl_1", "ppl_2", "ppl_4", "ppl_8", "ppl"),
        axes=(("depths", "depth", "ppl", ""),),
        note="The paper: best at one evaluation, nearly as good at none; the looped model needs about 8.",
    ),
}
