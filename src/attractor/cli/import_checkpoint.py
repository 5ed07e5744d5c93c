"""``attractor import``: convert a checkpoint that others published."""

from pathlib import Path

from attractor.cli.output import say


def import_checkpoint(folder: Path, out: Path, /) -> None:
    """Convert a published checkpoint: a language model of the paper's authors, or TRM, EqR, HRM or TRM-DEQ for puzzles.

    A puzzle model becomes a checkpoint for evaluate and solve, a language model a folder that AutoModelForCausalLM loads.

    Args:
        folder: A folder with config.json and model.pt, pytorch_model.bin or model.safetensors, in one file or in shards. A
            tokenizer in it is copied.
        out: The folder to write; it must not exist.
    """
    from attractor.experiment.published import import_checkpoint as run

    model, what = run(folder, out)
    say(f"{out}: {sum(weight.numel() for weight in model.parameters()):,} weights, {what}")
