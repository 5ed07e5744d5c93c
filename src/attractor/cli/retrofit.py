"""``attractor retrofit``: a pretrained Qwen3 or Llama becomes an attractor model to train on."""

from pathlib import Path

from rich.console import Console

from attractor.data.text import load_tokenizer
from attractor.experiment.loading import quiet
from attractor.files import new_folder, require_free
from attractor.interop import retrofit as retrofit_backbone


def retrofit(
    backbone: str,
    out: Path,
    /,
    num_attractor_layers: int = 1,
    gate_start: float = 0.7,
    gate_limit: float = 1.0,
) -> None:
    """Make an attractor model of a pretrained one; at depth 1 it is the original.

    Args:
        backbone: Folder or hub name of a Qwen3 or Llama with its tokenizer.
        out: Folder to write; must not exist.
        num_attractor_layers: How many of its last layers become the attractor.
        gate_start: Where the factors on the attractor's branches start.
        gate_limit: What they stay below.
    """
    require_free(out)
    with quiet():
        tokenizer = load_tokenizer(Path(backbone))
        model = retrofit_backbone(
            backbone, num_attractor_layers=num_attractor_layers, gate_start=gate_start, gate_limit=gate_limit
        )
        with new_folder(out) as part:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
    Console().print(
        f"{out}: {model.num_parameters() / 1e6:.1f} million weights, {num_attractor_layers} of "
        f"{model.config.num_hidden_layers} layers the attractor.\n"
        f"Next: attractor data prepare TEXT --tokenizer {out} --out tokens\n"
        f"      attractor train language/retrofit --init {out} --data tokens",
        soft_wrap=True,
        highlight=False,
    )
