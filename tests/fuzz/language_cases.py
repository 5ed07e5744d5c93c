"""Cases for language models, their data, conversions and evaluations."""

import gzip
import json
import random
import shutil
from pathlib import Path

import torch
from tests.fuzz.case import TEXTS, Case, damage, some_options
from tests.small_models import SIZES
from transformers import LlamaConfig, LlamaForCausalLM

from attractor.cli import main
from attractor.data.text import train_tokenizer
from attractor.files.manifest import write_checksums
from attractor.files.received import quiet
from attractor.models.language import AttractorConfig, AttractorForCausalLM

OFFICIAL = Path(__file__).parents[1] / "interop" / "official_tiny"
DOCUMENTS = [" ".join(f"the {i * j % 13} small boats of {j}" for j in range(40)) for i in range(6)]
READS = {  # commands with the words that make them fast, and their options
    "generate": (
        ["--prompt", "the sea", "--max-new-tokens", "3"],
        [
            *(
                "--prompt",
                "--max-new-tokens",
                "--temperature",
                "--top-k",
                "--top-p",
                "--num-samples",
                "--seed",
                "--depth",
            ),
            *("--tolerance", "--max-evaluations"),
        ],
    ),
    "evaluate": (
        ["--data", "text", "--limit", "1"],
        [
            *("--data", "--tasks", "--field", "--bundle", "--depth", "--tolerance", "--max-evaluations", "--length"),
            *("--out", "--stride", "--limit", "--batch-size", "--depths", "--seed"),
        ],
    ),
    "inspect": (
        ["--data", "text", "--out", "new", "--depths", "1", "--num-documents", "1"],
        ["--data", "--out", "--field", "--num-documents", "--depths", "--tolerance", "--seed"],
    ),
    "calibrate": (
        ["--data", "text", "--limit", "1", "--characters", "30"],
        ["--data", "--max-loss-increase", "--field", "--limit", "--characters", "--batch-size"],
    ),
    "export": (["new", "--depth", "1"], ["--depth", "--data"]),
    "export-inference": (["new"], ["--latest", "--depth", "--no-latest"]),
    "retrofit": (["new"], ["--num-attractor-layers", "--gate-start", "--gate-limit"]),
    "import": (["new"], ["--depth", "--latest"]),
}
COMMANDS = [
    *READS,
    *[command for command in READS if command != "inspect"] * 4,
]  # inspect draws pages, which takes long
PREPARE = ["--out", "new", "--val-fraction", "0.3", "--vocab-size", "258"]
PREPARE_OPTIONS = ["--out", "--val", "--val-fraction", "--vocab-size", "--tokenizer", "--field", "--tokenizer-bytes"]
SMALL = ["text.length=16", "text.batch_size=2", "train.accumulate=1", "train.num_steps=2", "train.checkpoint_every=1"]
TRAIN = ["--out", "new", "--logger", "none", "--set", *SMALL]
# A model with checksums, the same without, a Llama, an official checkpoint, a run, prepared text, an evaluation bundle.
MODELS = ["language", "received", "backbone", "run", "official"]


def make_language(folder: Path) -> None:
    """Write tiny models and data of every kind."""
    (folder / "text").mkdir()
    for number, text in enumerate(DOCUMENTS):
        (folder / "text" / f"{number}.txt").write_text(text)
    tokenizer = train_tokenizer(DOCUMENTS, 264)
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {**SIZES, "vocab_size": 264, "max_position_embeddings": 64, **special}
    for name, model in (
        ("received", AttractorForCausalLM(AttractorConfig(**sizes, max_evaluations=8))),
        ("backbone", LlamaForCausalLM(LlamaConfig(**sizes))),
    ):
        with quiet():
            model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shutil.copytree(folder / "received", folder / "language")
    write_checksums(folder / "language")
    (folder / "official").mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copyfile(OFFICIAL / name, folder / "official" / name)
    text, tokens, run = (str(folder / name) for name in ("text", "tokens", "run"))
    main(["data", "prepare", text, "--out", tokens, "--val-fraction", "0.3", "--tokenizer", str(folder / "received")])
    command = ["train", "language/retrofit", "--init", str(folder / "received"), "--data", tokens, "--out", run]
    assert main([*command, "--logger", "none", "--set", *SMALL]) == 0
    _make_bundle(folder / "bundle")


def _make_bundle(folder: Path) -> None:
    folder.mkdir()
    tasks = {"choose": "multiple_choice", "schemas": "schema", "lambada_openai": "language_modeling"}
    entry = "- {{label: {0}, dataset_uri: {0}.jsonl, num_fewshot: [1], icl_task_type: {1}}}\n"
    (folder / "core.yaml").write_text("icl_tasks:\n" + "".join(entry.format(*each) for each in tasks.items()))
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\n" + "".join(f"{t},50\n" for t in tasks))
    items = {
        "choose": {"query": "the", "choices": ["cat", "dog"], "gold": 1},
        "schemas": {"context_options": ["the cat", "a dog"], "continuation": "sat", "gold": 0},
        "lambada_openai": {"context": "the", "continuation": "cat"},
    }
    for task, item in items.items():
        (folder / f"{task}.jsonl").write_text((json.dumps(item) + "\n") * 3)


def _copied(rng: random.Random) -> Case:
    """Return a case that reads a whole model, with odd options."""
    command = rng.choice(COMMANDS)
    more, options = READS[command]
    model = {"retrofit": "backbone", "import": MODELS[-1]}.get(command, rng.choice(["language", "run"]))
    arguments = [command, "copy", *more, *some_options(options, rng)]
    return Case(arguments, lambda folder: shutil.copytree(folder / model, folder / "copy"))


def _prepare(rng: random.Random) -> Case:
    return Case(["data", "prepare", "text", *PREPARE, *some_options([*PREPARE_OPTIONS, "--shard-tokens"], rng)])


def _models(rng: random.Random) -> Case:
    """Return a case that reads a damaged model."""
    source = rng.choice(MODELS)
    prepare, how = damage(source, rng)
    command = rng.choice(["retrofit", "generate", "evaluate"] if source == "backbone" else COMMANDS)
    command = "import" if source == "official" else command
    arguments = [command, "copy", *READS[command][0]]
    if source != "official" and rng.random() < 0.2:
        arguments = ["data", "prepare", "text", *PREPARE, "--tokenizer", "copy"]
    elif source in ("received", "language") and rng.random() < 0.2:
        arguments = ["train", "language/retrofit", "--init", "copy", "--data", "tokens", *TRAIN]
    elif source == "run" and rng.random() < 0.3:
        arguments = [
            "train",
            "language/retrofit",
            "--init",
            "received",
            "--data",
            "tokens",
            "--out",
            "copy",
            "--resume",
        ]
        arguments += ["--logger", "none", "--set", *SMALL]
    is_read_whole = source == "language" and arguments[0] in READS and arguments[0] != "import"
    return Case(arguments, prepare, must_fail=is_read_whole and how not in ("foreign", "json", "renamed"))


def _data(rng: random.Random) -> Case:
    """Return a case that reads damaged data: prepared text, an evaluation bundle, or a tokenizer."""
    source = rng.choice(["tokens", "bundle"])
    prepare, how = damage(source, rng)
    commands = [
        ["data", "verify", "copy"],
        ["evaluate", "received", "--data", "copy", "--limit", "1"],
        ["train", "language/retrofit", "--init", "received", "--data", "copy", *TRAIN],
        ["data", "prepare", "text", "--out", "new", "--val-fraction", "0.3", "--tokenizer", "copy"],
    ]
    if source == "bundle":
        tasks = rng.choice([["core"], ["lambada"], ["choose"], ["schemas"]])
        return Case(["evaluate", "received", "--bundle", "copy", "--tasks", *tasks], prepare)
    which = rng.randrange(len(commands))
    return Case(commands[which], prepare, must_fail=which == 0 and how not in ("foreign", "json", "renamed"))


def _documents(rng: random.Random) -> Case:
    """Return a case that reads odd text."""
    name = rng.choice(
        ["a.txt", "a.jsonl", "A.JSONL", "a.md", "a.jsonl.gz", "a.txt.xz", "a.parquet", "[x].txt", "a\nb.txt"]
    )
    record = rng.choice([{"text": rng.choice(TEXTS)}, {"text": rng.choice([None, 3, [], {}])}, {"other": "x"}, [], 3])
    data = rng.choice(
        [
            rng.randbytes(rng.choice([0, 1, 50, 3000])),
            (json.dumps(record) + "\n").encode() * rng.choice([1, 2, 50]),
            rng.choice(TEXTS).encode(errors="replace") * rng.choice([1, 3, 200]),
            rng.choice(TEXTS).encode("utf-16", errors="replace") * 3,
            "\n".join(DOCUMENTS).encode(),
        ]
    )
    data = gzip.compress(data)[: rng.choice([5, -1, 10**9])] if rng.random() < 0.2 else data
    arguments = rng.choice(
        [
            ["data", "prepare", name, *PREPARE],
            ["data", "prepare", "text", "--val", name, "--out", "new", "--vocab-size", "258"],
        ]
        + [
            [command, "copy", *READS[command][0], "--data", name]
            for command in ("evaluate", "inspect", "calibrate", "export")
        ]
    )

    def prepare(folder: Path) -> None:
        (folder / name).write_bytes(data)
        shutil.copytree(folder / "language", folder / "copy")

    return Case(arguments, prepare)


def _names(rng: random.Random) -> Case:
    name, command = rng.choice(TEXTS), rng.choice(COMMANDS)
    more = READS[command][0]
    commands = [
        [command, name, *more],
        [command, "language", *([name, *more[1:]] if more[0] == "new" else more)],
        ["data", "prepare", name, *PREPARE],
        ["data", "prepare", "text", "--tokenizer", name, *PREPARE],
        ["train", "language/retrofit", "--init", name, "--data", "tokens", *TRAIN],
        ["train", "language/retrofit", "--init", "received", "--data", name, *TRAIN],
        ["generate", "language", "--prompt", "-", "--max-new-tokens", "2"],
    ]
    stdin = name.encode(errors="surrogateescape") * rng.choice([1, 5])
    return Case(rng.choice(commands[2:] if command == "calibrate" else commands), stdin=stdin)


KINDS = (_copied, _prepare, _models, _models, _data, _documents, _names)
