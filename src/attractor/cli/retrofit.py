"""``attractor retrofit``: turn a pretrained Qwen3 or Llama into an attractor model."""

from pathlib import Path

from attractor.cli.output import say


def retrofit(
    backbone: str,
    out: Path,
    /,
    num_attractor_layers: int = 1,
    gate_start: float = 0.7,
    gate_limit: float = 1.0,
) -> None:
    """Make an attractor model from a pretrained model. At depth 1 it is the original.

    Args:
        backbone: The folder or the hub name of a Qwen3 or Llama with its tokenizer.
        out: The folder to write; it must not exist.
        num_attractor_layers: How many of its last layers become the attractor.
        gate_start: The initial value of the factors on the attractor's branches.
        gate_limit: The limit of these factors.
    """
    from attractor.experiment.conversion import retrofit as run

    layers = num_attractor_layers
    model = run(backbone, out, num_attractor_layers=layers, gate_start=gate_start, gate_limit=gate_limit)
    say(
        f"{out}: {model.num_parameters() / 1e6:.1f} million weights, {layers} of {model.config.num_hidden_layers} layers are "
        f"the attractor.",
        f"Next: attractor data prepare TEXT --tokenizer {out} --out tokens",
        f"      attractor train language/retrofit --init {out} --data tokens",
    )
