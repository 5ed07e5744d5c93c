"""``attractor retrofit``: turn a pretrained language model into an attractor model."""

from pathlib import Path
from typing import Annotated, Any

import tyro

from attractor.cli.output import add_row, make_table, say, show


def retrofit(
    backbone: str,
    out: Path,
    /,
    num_attractor_layers: int = 1,
    gate_start: float = 0.7,
    gate_limit: float = 1.0,
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")] = (),
) -> None:
    """Make an attractor model from a pretrained Llama, Mistral, Qwen2 or Qwen3, which computes the same until trained.

    Args:
        backbone: The folder or the hub name of such a model with its tokenizer, or a file .gguf.
        out: The folder to write; it must not exist.
        num_attractor_layers: How many of its last layers become the attractor.
        gate_start: The initial value of the factors on the attractor's branches.
        gate_limit: The limit of these factors.
        data: Text on which depth 1, depth 2 and the equilibrium are compared: files or folders of documents; by default
            a few sentences.
    """
    from attractor.experiment.conversion import retrofit as run

    layers = num_attractor_layers
    gates: Any = {"gate_start": gate_start, "gate_limit": gate_limit}
    model, scores = run(backbone, out, data=data, num_attractor_layers=layers, **gates)
    say(
        f"{out}: {model.num_parameters() / 1e6:.1f} million weights, {layers} of {model.config.num_hidden_layers} layers are "
        f"the attractor.",
    )
    if scores:
        table = make_table(
            ("", "bits/byte", "evaluations", "tokens/s"), title=f"{scores[0].score.num_bytes:,} bytes of text"
        )
        for each in scores:
            name = ", ".join(f"{name} {value:g}" for name, value in each.budget.items())
            score = each.score
            figures = f"{score.bits_per_byte:.4f}", f"{score.evaluations:.1f}", f"{each.tokens_per_second:,.0f}"
            add_row(table, name, *figures)
        show(table)
        say("Depth 1 is the default until the model is trained or calibrated; --tolerance or --depth change it.")
    say(
        f"Next: attractor data prepare TEXT --tokenizer {out} --out tokens",
        f"      attractor train language/retrofit --init {out} --data tokens",
    )
