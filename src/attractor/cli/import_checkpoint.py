"""``attractor import``: convert a checkpoint that others published."""

from pathlib import Path

from attractor.cli.output import say


def import_checkpoint(folder: Path, out: Path, /, seq_len: int | None = None) -> None:
    """Convert a published checkpoint: a language model of the paper's authors, or TRM, EqR, HRM or TRM-DEQ for puzzles.

    A puzzle model becomes a checkpoint for evaluate and solve, a language model a folder that AutoModelForCausalLM loads.

    Args:
        folder: A checkpoint as the authors' code writes it, or one file of such a folder. Or a folder with config.json and
            model.pt, pytorch_model.bin or model.safetensors, in one file or in shards; a tokenizer in it is copied.
        out: The folder to write; it must not exist.
        seq_len: The number of cells of a puzzle, for checkpoints of puzzle models that do not tell it.
    """
    from attractor.experiment.published import import_checkpoint as run

    model, what = run(folder, out, seq_len=seq_len)
    say(f"{out}: {sum(weight.numel() for weight in model.parameters()):,} weights, {what}")
