"""Read the tasks of an evaluation bundle: a folder in the layout of DCLM's CORE benchmark.

A bundle holds ``core.yaml`` (the tasks), ``eval_meta_data.csv`` (random baselines), and one ``.jsonl`` file per task, which
may be compressed. Source: DCLM, arXiv:2406.11794.
"""

import csv
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attractor.config import suggestion
from attractor.errors import AttractorError, DataError, requires_extra
from attractor.files import member, require_regular

Item = dict[str, Any]
# Required fields of an item of each kind, and their types.
FIELDS: dict[str, dict[str, type]] = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
}
# The 24 tasks that CORE-Extended adds to CORE: a folder, then labels with the number of examples before each item.
# Source: ``core_extended_eval.py`` of github.com/attractor-models/attractor-models.
EXTENDED = """\
world_knowledge: mmlu_zeroshot 0, mmlu_fewshot 5, bigbench_misconceptions 10
commonsense_reasoning: siqa 10, bigbench_novel_concepts 10, bigbench_strange_stories 10, bigbench_strategy_qa 10
language_understanding: bigbench_conlang_translation 0, bigbench_conceptual_combinations 10
symbolic_problem_solving: bigbench_elementary_math_qa 10, bigbench_logical_deduction 10, simple_arithmetic_nospaces 10
symbolic_problem_solving: simple_arithmetic_withspaces 10, math_qa 10, logi_qa 10
reading_comprehension: pubmed_qa_labeled 10, agi_eval_lsat_rc 3, agi_eval_lsat_lr 3, bigbench_understanding_fables 10
reading_comprehension: agi_eval_sat_en 3
safety: winogender_mc_female 10, winogender_mc_male 10, enterprise_pii_classification 10, bbq 3"""
# Those that are not multiple choice, do not have a space as the delimiter, or have a file of another name.
EXTENDED_DIFFERENCES: dict[str, dict[str, str]] = {
    "mmlu_zeroshot": {"continuation_delimiter": "Answer: ", "dataset_uri": "world_knowledge/mmlu.jsonl"},
    "mmlu_fewshot": {"continuation_delimiter": "\nAnswer: ", "dataset_uri": "world_knowledge/mmlu.jsonl"},
    "logi_qa": {"continuation_delimiter": "\nAnswer: "},
    "bigbench_conlang_translation": {"icl_task_type": "language_modeling"},
    "simple_arithmetic_nospaces": {"icl_task_type": "language_modeling"},
    "simple_arithmetic_withspaces": {"icl_task_type": "language_modeling"},
    "pubmed_qa_labeled": {"icl_task_type": "language_modeling"},
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a bundle.

    Attributes
    ----------
    kind
        A key of ``FIELDS``.
    file, rebuilt
        Its data, None when the bundle does not contain it; and whether that is ``NAME_rebuilt.jsonl``: equivalent data
        made again from its source, not the original file.
    delimiter
        Text between a context and its continuation.
    baseline
        Accuracy of random guessing, in [0, 1).
    """

    label: str
    kind: str
    file: Path | None
    rebuilt: bool
    num_fewshot: int
    delimiter: str
    baseline: float


def read_tasks(bundle: Path, *, extended: bool = False) -> tuple[Task, ...]:
    """Return the tasks of ``bundle`` in the order of its ``core.yaml``, then those that only CORE-Extended has.

    Raises DataError for an invalid bundle. A task of CORE-Extended without a baseline has 25 %, as its authors have it.
    """
    with requires_extra("eval"):
        import yaml  # type: ignore[import-untyped]
    listing, table = bundle / "core.yaml", bundle / "eval_meta_data.csv"
    for each in (listing, table):
        require_regular(each, DataError)
    try:
        entries = yaml.safe_load(listing.read_text(encoding="utf-8-sig"))["icl_tasks"]
        with table.open(newline="", encoding="utf-8-sig") as file:
            baselines = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(file)}
        tasks = tuple(_parse_task(bundle, entry, baselines) for entry in entries)
        if extended:
            listed = {task.label for task in tasks}
            added = [entry for entry in _extended_entries() if entry["label"] not in listed]
            baselines = {entry["label"]: 0.25 for entry in added} | baselines
            tasks += tuple(_parse_task(bundle, entry, baselines) for entry in added)
    except AttractorError:
        raise
    except OSError as error:
        raise DataError(f"{bundle}: no evaluation bundle ({error}); give a folder with core.yaml in it.") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise DataError(f"{bundle}: core.yaml and eval_meta_data.csv cannot be parsed ({error!r}).") from error
    if not tasks:
        raise DataError(f"{listing}: lists no task; give the complete evaluation bundle.")
    return tasks


def _extended_entries() -> list[dict[str, Any]]:
    """Return the tasks that only CORE-Extended has, as ``core.yaml`` would list them."""
    entries = []
    for line in EXTENDED.splitlines():
        folder, tasks = line.split(": ")
        for label, num in map(str.split, tasks.split(", ")):
            entry: dict[str, Any] = {"label": label, "num_fewshot": [num], "icl_task_type": "multiple_choice"}
            entry |= {"dataset_uri": f"{folder}/{label}.jsonl"}
            entries.append(entry | EXTENDED_DIFFERENCES.get(label, {}))
    return entries


def find_task(bundle: Path, label: str) -> Task:
    """Return the task of ``bundle`` with this label, of CORE or CORE-Extended."""
    tasks = {task.label: task for task in read_tasks(bundle, extended=True)}
    if label not in tasks:
        raise DataError(f"{bundle}: has no task {label!r}; {suggestion(label, tasks)}")
    return tasks[label]


def read_items(task: Task) -> list[Item]:
    """Return the validated items of a task in the order of its file. Raises DataError for a missing or damaged file."""
    from attractor.data.text.documents import decompressed

    file, items = task.file, []
    if file is None:
        raise DataError(f"{task.label}: the bundle has no file for this task; add the file, or leave the task out.")
    try:
        with file.open("rb") as raw:
            for number, line in enumerate(decompressed(raw, file), start=1):
                if line.strip():
                    items.append(_check_item(json.loads(line), task.kind, f"{file}: line {number}"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: line {number} is not JSON ({error.msg}).") from error
    except (OSError, EOFError, UnicodeDecodeError, RecursionError, lzma.LZMAError) as error:
        raise DataError(f"{file}: cannot be read ({error}).") from error
    if len(items) <= task.num_fewshot:
        raise DataError(f"{file}: {len(items)} item(s) are too few for {task.num_fewshot} examples before each.")
    return items


def _parse_task(bundle: Path, entry: dict[str, Any], baselines: dict[str, float]) -> Task:
    from attractor.data.text.documents import OPENERS

    label, kind = entry["label"], entry["icl_task_type"]
    if kind not in FIELDS:
        raise DataError(
            f"{bundle / 'core.yaml'}: {label} has the unknown type {kind!r}; {suggestion(str(kind), FIELDS)}"
        )
    if label not in baselines:
        raise DataError(f"{bundle / 'eval_meta_data.csv'}: has no random baseline for {label}; add its row.")
    original = Path(entry["dataset_uri"])
    candidates = [
        (member(bundle, Path(folder, f"{name}{suffix}").as_posix(), DataError, bundle / "core.yaml"), name != original)
        for name in (original, original.with_stem(original.stem + "_rebuilt"))
        for folder in ("", "eval_data")  # the published archive uses eval_data
        for suffix in ("", *OPENERS)
    ]
    file, rebuilt = next(((path, rebuilt) for path, rebuilt in candidates if path.is_file()), (None, False))
    return Task(
        label=label,
        kind=kind,
        file=file,
        rebuilt=rebuilt,
        num_fewshot=int(entry["num_fewshot"][0]),
        delimiter=entry.get("continuation_delimiter", " "),
        baseline=baselines[label],
    )


def _check_item(item: Any, kind: str, where: str) -> Item:
    for name, expected in FIELDS[kind].items():
        if not isinstance(item, dict) or not isinstance(item.get(name), expected):
            raise DataError(f"{where}: a {kind} item needs {name!r} ({expected.__name__}).")
    if kind != "language_modeling":
        options = item["choices" if kind == "multiple_choice" else "context_options"]
        if not (all(isinstance(option, str) for option in options) and 0 <= item["gold"] < len(options)):
            raise DataError(f"{where}: gold={item['gold']} must be one of its {len(options)} options, each a text.")
    return item
