"""Does the ``tiny`` recipe beat a byte-level 5-gram fitted on the very bytes it was trained on?

    attractor train language/tiny --data TEXT --out runs/tiny
    python -m benchmarks.tiny runs/tiny --data TEXT

Both are evaluated on the held-out documents of TEXT, all bytes of all of them. Written to
``results/language/tiny.json``.
"""

import json
from pathlib import Path

import numpy as np
from rich.console import Console

from attractor.data.text import PackedRows, Shards, load_tokenizer, read_held_out
from attractor.evaluation import score_text
from attractor.experiment.environment import environment
from attractor.experiment.loading import load_language_model
from attractor.files import write_json
from attractor.training import find_checkpoint, read_run
from benchmarks.command import run_command
from benchmarks.ngram import ByteNgram

OUT = Path("results/language/tiny.json")


def main(run: Path, /, data: Path, order: int = 5) -> None:
    """Evaluate both, print and write.

    Args:
        run: The trained run's folder.
        data: The prepared text that it was trained on.
        order: Of the n-gram model.
    """
    checkpoint = find_checkpoint(run)
    settings = read_run(checkpoint)["recipe"]
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = PackedRows(Shards(data, "train"), settings["text"]["length"], settings["text"]["seed"])
    tokenizer = load_tokenizer(data)
    seen = int(log[-1]["tokens"]) // rows.length
    tokens = np.concatenate([rows.batch(row, 1)[0].numpy()[0] for row in range(seen)])
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    held_out = list(read_held_out((data,)))
    loaded = load_language_model(checkpoint)
    model, own = loaded.model, loaded.tokenizer
    score = score_text(model, own, held_out, length=rows.length, batch_size=32)
    once = score_text(model, own, held_out, length=rows.length, batch_size=32, depth=1)
    ngram = ByteNgram(text.encode(), order).bits_per_byte(held_out)
    result = {
        "command": "python -m benchmarks.tiny runs/tiny --data TEXT",
        "environment": environment(),
        "seconds": log[-1]["seconds"],
        "tokens": log[-1]["tokens"],
        "training_bytes": len(text.encode()),
        "held_out_bytes": score.num_bytes,
        "bits_per_byte": score.bits_per_byte,
        "bits_per_byte_at_depth_1": once.bits_per_byte,
        "evaluations": score.evaluations,
        f"byte_{order}_gram_bits_per_byte": ngram,
    }
    write_json(OUT, result)
    Console().print(result)


if __name__ == "__main__":
    run_command(main)
