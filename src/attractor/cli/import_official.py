"""``attractor import-official``: a checkpoint in the paper authors' format becomes one of ours."""

from pathlib import Path

from rich.console import Console

from attractor.data.text import load_tokenizer
from attractor.experiment.loading import quiet
from attractor.files import new_folder, require_free
from attractor.interop.official_checkpoint import import_official as read_official


def import_official(folder: Path, out: Path, /) -> None:
    """Read a checkpoint that the paper's authors published and write it as a folder that AutoModelForCausalLM loads.

    Args:
        folder: With config.json and pytorch_model.bin or model.safetensors, whole or in shards; a tokenizer there comes along.
        out: The folder to write.
    """
    require_free(out)
    model = read_official(folder)
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = load_tokenizer(folder) if has_tokenizer else None
    with new_folder(out) as part, quiet():
        model.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
    beside = "" if tokenizer is not None else "; it has no tokenizer yet: copy one into it"
    Console().print(f"{out}: {model.num_parameters():,} weights{beside}", highlight=False)
