"""``attractor export-inference``: write the part of a checkpoint that inference needs."""

from pathlib import Path

from attractor.cli.output import say


def export_inference(checkpoint: str, out: Path, /, latest: bool = False) -> None:
    """Write only the model of a checkpoint: weights, configuration and tokenizer. All commands read it.

    Args:
        checkpoint: The folder of a checkpoint, or of a run, whose newest checkpoint is taken.
        out: The folder to write; it must not exist.
        latest: Write the weights of the last step instead of the averaged weights.
    """
    from attractor.experiment.conversion import export_inference as run

    source = run(checkpoint, out, latest=latest)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    say(f"{out}: {size / 1e6:,.1f} MB of {source}")
