"""``attractor import-official``: convert a checkpoint in the format of the paper's authors."""

from pathlib import Path

from attractor.cli.output import say


def import_official(folder: Path, out: Path, /) -> None:
    """Convert a checkpoint that the paper's authors published to a folder that AutoModelForCausalLM loads.

    Args:
        folder: A folder with config.json and pytorch_model.bin or model.safetensors, in one file or in shards. A
            tokenizer in it is copied.
        out: The folder to write; it must not exist.
    """
    from attractor.experiment.conversion import import_official as run

    model, tokenizer = run(folder, out)
    advice = "" if tokenizer is not None else "; it has no tokenizer yet: copy one into it"
    say(f"{out}: {model.num_parameters():,} weights{advice}")
