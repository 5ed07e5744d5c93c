"""``attractor evaluate``: what it prints and writes, which folders it reads, and that mistakes are one sentence."""

import json
import os
import shutil

import pytest
import tyro
from tests.small_models import SIZES as ALL_SIZES
from transformers import Qwen3Config, Qwen3ForCausalLM

from attractor.cli.evaluate import evaluate
from attractor.data.text import prepare
from attractor.errors import AttractorError, CheckpointError, ConfigError, DataError
from attractor.experiment.loading import load_language_model
from attractor.models.language import AttractorConfig, AttractorForCausalLM

SIZES = {**ALL_SIZES, "vocab_size": 290, "max_position_embeddings": 64}
DOCUMENTS = ["the cat sat on the mat 🙂 " * 9, "a dog in a den", "ten hens sat down"]
NUM_BYTES = sum(len(text.encode()) for text in DOCUMENTS)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """A run's folder with one checkpoint."""
    folder = tmp_path_factory.mktemp("run") / "step-00000007"
    AttractorForCausalLM(AttractorConfig(**SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps({"format": "attractor-1", "kind": "language"}))
    return folder.parent


@pytest.fixture
def copy(run, tmp_path):
    """A checkpoint to damage."""
    return shutil.copytree(run / "step-00000007", tmp_path / "copy")


@pytest.fixture(scope="module")
def stock(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("stock")
    Qwen3ForCausalLM(Qwen3Config(**SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "held-out.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return file


def run_evaluate(out, *arguments) -> dict:
    """Run the command as a shell does, and return the figures that it wrote."""
    tyro.cli(evaluate, args=[str(a) for a in (*arguments, "--out", out)])
    return json.loads(out.read_text())


def test_text_is_evaluated_and_written(run, data, tmp_path, capsys) -> None:
    """A run's folder means its newest checkpoint; bytes are those of the documents; the budget is passed on and noted."""
    written = run_evaluate(tmp_path / "out.json", run, "--data", data, "--depth", "3", "--batch-size", "2")
    figures = written["results"]["text"]
    assert (figures["num_bytes"], figures["num_documents"], figures["evaluations"]) == (NUM_BYTES, 3, 3)
    assert written["budget"] == {"depth": 3}
    assert "bits per byte" in capsys.readouterr().out
    few = run_evaluate(tmp_path / "out.json", run, "--data", data, "--limit", "1")["results"]["text"]
    assert few["num_documents"] == 1
    assert few["converged_fraction"] == 1


def test_what_an_evaluation_leaves_out_is_counted_and_named(run, tmp_path, capsys) -> None:
    """Files without text and records without a text; without any, nothing is said."""
    folder = tmp_path / "held-out"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("the cat", None, "a dog")))
    (folder / "b.text").write_text("the hen")
    figures = run_evaluate(tmp_path / "out.json", run, "--data", folder, "--depth", "1")["results"]["text"]
    assert (figures["num_documents"], figures["num_left_out"]) == (2, 2)
    assert any("b.text" in name for name in figures["left_out"])
    assert "left out 2" in " ".join(capsys.readouterr().out.split())
    (folder / "b.text").unlink()
    (folder / "a.jsonl").write_text(json.dumps({"text": "the cat"}))
    assert "left_out" not in run_evaluate(tmp_path / "out.json", run, "--data", folder)["results"]["text"]


def test_a_bundle_may_begin_with_a_byte_order_mark_and_is_no_pipe(run, bundle, tmp_path, monkeypatch) -> None:
    """Its files are UTF-8 on every system."""
    for name in ("core.yaml", "eval_meta_data.csv"):
        (bundle / name).write_bytes(b"\xef\xbb\xbf" + (bundle / name).read_bytes())
    written = run_evaluate(tmp_path / "out.json", run, "--bundle", bundle, "--tasks", "choose", "--depth", "1")
    assert "choose" in written["results"]
    for name in ("core.yaml", "eval_meta_data.csv"):
        content = (bundle / name).read_bytes()
        (bundle / name).unlink()
        os.mkfifo(bundle / name)
        with pytest.raises(DataError, match="is no regular file"):
            evaluate(str(run), bundle=bundle, tasks=("choose",))
        (bundle / name).unlink()
        (bundle / name).write_bytes(content)
    (bundle / "core.yaml").write_text("[" * 5000)
    with pytest.raises(DataError, match="cannot be parsed"):
        evaluate(str(run), bundle=bundle, tasks=("choose",))


def test_a_plain_folder_of_transformers_is_evaluated_alike(stock, data, tmp_path) -> None:
    """Without run.json, without a solve; a budget is refused."""
    figures = run_evaluate(tmp_path / "out.json", stock, "--data", data)["results"]["text"]
    assert figures["num_bytes"] == NUM_BYTES
    assert figures["evaluations"] is None
    with pytest.raises(ConfigError, match="has no depth"):
        evaluate(stock, data=(data,), depth=1)


def test_a_prepared_folder_gives_its_held_out_text_back(run, data, tokenizer, tmp_path) -> None:
    """The same figures as from the documents themselves."""
    prepare(tmp_path / "prepared", {"train": ["the cat"], "val": DOCUMENTS}, tokenizer)
    prepared = run_evaluate(tmp_path / "a.json", run, "--data", tmp_path / "prepared", "--depth", "1")
    plain = run_evaluate(tmp_path / "b.json", run, "--data", data, "--depth", "1")
    assert prepared["results"] == plain["results"]


def test_tasks_of_a_bundle_are_run_evaluate(run, bundle, tmp_path, capsys) -> None:
    """All of CORE, LAMBADA, and one by its label; what is missing is named."""
    written = run_evaluate(
        tmp_path / "out.json", run, "--bundle", bundle, "--tasks", "core", "lambada", "choose", "--limit", "3"
    )
    results = written["results"]
    assert results["CORE-2"]["missing"] == ["absent"]
    assert (results["choose"]["num_items"], results["choose"]["num_all"]) == (3, 5)
    assert results["lambada"]["perplexity"] > 1
    assert written["limit"] == 3
    assert "absent" in capsys.readouterr().out


def test_core_extended_is_run_with_several_seeds(run, bundle, tmp_path, capsys) -> None:
    """The command evaluates the tasks that are found and names the others; the figures hold the seeds."""
    (bundle / "eval_data" / "safety").mkdir(parents=True)
    (bundle / "eval_data" / "safety" / "bbq.jsonl").write_bytes((bundle / "some" / "a.jsonl").read_bytes())
    arguments = ("--bundle", bundle, "--tasks", "core-extended", "--fewshot-seeds", "1234", "2345", "--depth", "1")
    written = run_evaluate(tmp_path / "out.json", run, *arguments)
    results = written["results"]
    assert sorted(results) == ["CORE-Extended-3", "bbq", "choose", "lambada_openai"]
    assert {"absent", "siqa", "mmlu_fewshot"} <= {*results["CORE-Extended-3"]["missing"]}
    assert written["fewshot_seeds"] == [1234, 2345]
    assert "CORE-Extended-3" in capsys.readouterr().out
    assert "bbq" in run_evaluate(tmp_path / "one.json", run, "--bundle", bundle, "--tasks", "bbq")["results"]


def test_a_mistake_is_refused_before_any_work(run, data, bundle, tmp_path) -> None:
    """Each in one sentence that says what to do."""
    for settings, says in [
        ({}, "--data"),
        ({"data": (tmp_path / "no" / "such",)}, "no such file"),
        ({"tasks": ("core",)}, "--bundle"),
        ({"tasks": ("chose",), "bundle": bundle}, "did you mean 'choose'"),
        ({"tasks": ()}, "there is no task"),
        ({"data": (data,), "depths": (1, 2)}, "depths is for reasoners"),
        ({"data": (data,), "breadths": (1, 2)}, "breadths is for reasoners"),
        ({"data": (data,), "seed": 1}, "seed is for reasoners"),
        ({"data": (data,), "bundle": bundle}, "bundle is for lambada"),
        ({"data": (data,), "fewshot_seeds": (1,)}, "fewshot_seeds is for core"),
        ({"tasks": ("lambada",), "bundle": bundle, "fewshot_seeds": (1,)}, "fewshot_seeds is for core"),
        ({"data": (data,), "bundle": bundle, "tasks": ("core",)}, "data is for the task text"),
        ({"stride": 8, "bundle": bundle, "tasks": ("core",)}, "stride is for the task text"),
        ({"data": (data,), "limit": 0}, "limit=0"),
        ({"data": (data,), "batch_size": 0}, "batch_size=0"),
        ({"data": (data,), "out": tmp_path / "no" / "out.json"}, "cannot be written"),
        ({"data": (data,), "depth": 1, "tolerance": 0.1}, "not both"),
    ]:
        with pytest.raises((ConfigError, DataError), match=says) as caught:
            evaluate(run, **settings)
        assert "\n" not in str(caught.value)


def _edit(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:4000]),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: _edit(folder, num_hidden_layers=3),
        lambda folder: _edit(folder, num_hidden_layers=1),
        lambda folder: _edit(folder, num_attractor_layers=2),
        lambda folder: _edit(folder, hidden_size=16),
        lambda folder: _edit(folder, hidden_size="wide"),
        lambda folder: _edit(folder, model_type="unknown-kind"),
        lambda folder: _edit(folder, model_type="qwen3"),
    ],
)
def test_a_damaged_checkpoint_is_never_half_loaded(damage, copy, capfd) -> None:
    """Every damage is one sentence that names the folder, and nothing else on the screen."""
    load_language_model(copy)
    damage(copy)
    with pytest.raises(CheckpointError, match=str(copy)) as caught:
        load_language_model(copy)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_folder_without_a_model_is_refused(tmp_path) -> None:
    """An empty one, and one that does not exist."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(AttractorError, match="no checkpoint here"):
            load_language_model(folder)
