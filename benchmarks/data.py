"""The speed of text preparation, compared with the tokenizers library on the same synthetic text.

    python -m benchmarks.data

* Tokenising, in MB of text per second: ``prepare`` (tokenise, convert, compute checksums, write) against
  ``encode_batch_fast`` alone and against a call of the transformers wrapper.
* Reading, in tokens per second on one core: ``PackedRows.batch``.

Words follow a Zipf distribution over an invented vocabulary. Times are medians over interleaved repetitions. On a
shared machine only ratios are meaningful.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tokenizers
import torch
from rich.console import Console

from attractor.data.text import PackedRows, Shards, prepare, train_tokenizer
from attractor.files import write_json
from benchmarks.command import run_command

NUM_DOCUMENTS, NUM_WORDS, VOCABULARY = 4000, 500, 20_000
VOCAB_SIZE = 4096
BATCH, LENGTH, BATCHES = 16, 1024, 100
REPETITIONS = 5
OUT = Path("results/data/data.json")


def generate_documents(seed: int = 0) -> list[str]:
    """Return documents of Zipf-distributed words, in sentences and lines."""
    rng = np.random.default_rng(seed)
    syllables = np.array([c + v for c in "bcdfghklmnprstvw" for v in ("a", "e", "i", "o", "u", "ai", "en", "or")])
    words = ["".join(rng.choice(syllables, int(n))) for n in rng.integers(1, 5, VOCABULARY)]
    documents = []
    for _ in range(NUM_DOCUMENTS):
        ranks = np.minimum(rng.zipf(1.2, NUM_WORDS), VOCABULARY) - 1
        ends = rng.random(NUM_WORDS)
        documents.append(
            "".join(
                words[rank] + (".\n\n" if end < 0.02 else ", " if end < 0.1 else f" {rank} " if end < 0.11 else " ")
                for rank, end in zip(ranks, ends, strict=True)
            )
        )
    return documents


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = run()
    duration = time.perf_counter() - start
    del result  # freeing memory is not measured
    return duration


def main() -> None:
    console = Console()
    documents = generate_documents()
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    tokenizer = train_tokenizer(documents, VOCAB_SIZE)
    backend = tokenizer.backend_tokenizer
    with tempfile.TemporaryDirectory() as folder:
        folders = (Path(folder) / str(n) for n in range(REPETITIONS + 1))
        sides: dict[str, Callable[[], object]] = {
            "prepare": lambda: prepare(next(folders), {"train": documents}, tokenizer),
            "encode_batch_fast": lambda: backend.encode_batch_fast(documents, add_special_tokens=False),
            "wrapper": lambda: tokenizer(documents, add_special_tokens=False)["input_ids"],
        }
        durations: dict[str, list[float]] = {name: [] for name in sides}
        for repetition in range(REPETITIONS + 1):
            for name, run in sides.items():
                took = seconds(run)
                if repetition:  # the first warms up
                    durations[name].append(took)
        rates = {name: megabytes / statistics.median(values) for name, values in durations.items()}
        ratios = {
            name: statistics.median(b / a for a, b in zip(durations["prepare"], durations[name], strict=True))
            for name in ("encode_batch_fast", "wrapper")
        }
        shards = Shards(Path(folder) / "0")
        rows = PackedRows(shards, LENGTH)
        num = BATCH * LENGTH * BATCHES
        torch.set_num_threads(1)
        reading = statistics.median(
            num / seconds(lambda: [rows.batch(n * BATCH, BATCH) for n in range(BATCHES)]) for _ in range(REPETITIONS)
        )
        tokens_per_mb = shards.num_tokens / megabytes
    console.print(f"tokenising {megabytes:.0f} MB of {len(documents)} documents, MB/s (million tokens/s):")
    for name, rate in rates.items():
        ratio = f"  prepare reaches {ratios[name]:.2f} of it" if name in ratios else ""
        console.print(f"  {name:18} {rate:6.2f} ({rate * tokens_per_mb / 1e6:.2f}){ratio}", highlight=False)
    console.print(f"reading rows of {LENGTH}: {reading / 1e6:.1f} million tokens/s on one core", highlight=False)
    result = {
        "command": "python -m benchmarks.data",
        "environment": {
            "torch": torch.__version__,
            "tokenizers": tokenizers.__version__,
            "python": platform.python_version(),
            "threads": int(os.environ.get("RAYON_NUM_THREADS", os.cpu_count() or 1)),
        },
        "megabytes": megabytes,
        "tokenising_mb_per_second": rates,
        "tokenising_rate_prepare_to": ratios,
        "reading_tokens_per_second": reading,
    }
    write_json(OUT, result)


if __name__ == "__main__":
    run_command(main)
