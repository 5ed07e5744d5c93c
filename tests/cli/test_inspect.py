"""``attractor inspect``: a self-contained page, its figures and numbers, and errors that leave no files."""

import json
from html.parser import HTMLParser

import pytest
from PIL import Image
from tests.small_models import SIZES as ALL_SIZES
from tests.small_models import randomised
from transformers import Qwen3Config, Qwen3ForCausalLM

from attractor.cli import main
from attractor.experiment.environment import environment
from attractor.models.language import AttractorConfig, AttractorForCausalLM, LoopedConfig, LoopedForCausalLM

SIZES = {**ALL_SIZES, "vocab_size": 290, "max_position_embeddings": 48}
MARKUP = "<script>alert('the cat')</script> & the mat\n"
FIGURES = {"depth", "residual", "trajectories", "evaluations", "distance"}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """Checkpoints by kind of model."""
    root = tmp_path_factory.mktemp("models")
    for name, model in {
        "attractor": AttractorForCausalLM(AttractorConfig(**SIZES, gate_start=0.3)),
        "looped": LoopedForCausalLM(LoopedConfig(**SIZES, num_core_layers=1, num_coda_layers=0, mean_recurrence=2)),
        "plain": AttractorForCausalLM(AttractorConfig(**SIZES, num_attractor_layers=0)),
        "stock": Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    }.items():
        randomised(model).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, texts in {"a": [MARKUP * 2, "ten hens sat"], "b": ["a dog in a den 🙂"]}.items():
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def page(models, data, tmp_path_factory):
    """The folder that the command writes."""
    out = tmp_path_factory.mktemp("out") / "new" / "page"
    command = ["inspect", str(models / "attractor"), "--data", str(data / "a.jsonl"), str(data / "b.jsonl")]
    assert main([*command, "--out", str(out), "--depths", "0", "1", "3", "--tolerance", "1e-3"]) == 0
    return out


class Reader(HTMLParser):
    """Collects tags, links, and the coloured passages."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.titles: list[str] = []
        self.passages: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.links += [values[name] for name in ("src", "href", "action", "data", "srcset") if name in values]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if "title" in values:
            self.titles.append(values["title"])
        if values.get("class") == "passage":
            self.passages.append("")

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open[-1:] == ["span"] and self.passages:
            self.passages[-1] += data


def test_the_page_is_self_contained(page) -> None:
    """It has no external address, every figure is embedded, and every tag is closed."""
    html = (page / "index.html").read_text(encoding="utf-8")
    reader = Reader(html)
    assert reader.open == []
    assert len(reader.links) == len(FIGURES)
    assert all(link.startswith("data:image/png;base64,") for link in reader.links)
    assert not {"script", "link", "iframe", "base"} & reader.tags
    assert "http" not in html
    assert "@import" not in html
    assert "url(" not in html


def test_passages_are_escaped(page) -> None:
    """Markup in them is shown as text. Each token has its values; the last token of a passage is not scored."""
    reader = Reader((page / "index.html").read_text(encoding="utf-8"))
    assert len(reader.passages) == 3
    assert reader.passages[0] == (MARKUP * 2)[:-1]
    assert "a dog in a den 🙂".startswith(reader.passages[1])  # paths take turns
    assert "ten hens sat".startswith(reader.passages[2])
    assert all("evaluations, residual" in title for title in reader.titles)


def test_the_page_says_how_it_was_made(page, models) -> None:
    """It names the command, the checkpoint, the number of tokens, the tolerance and the environment."""
    html = (page / "index.html").read_text(encoding="utf-8")
    figures = json.loads((page / "figures.json").read_text())
    assert figures["environment"] == environment()
    assert figures["checkpoint"] == str(models / "attractor")
    for value in (figures["command"], f"{figures['num_tokens']:,}", "0.001", figures["environment"]["torch"]):
        assert value in html
    assert figures["command"].startswith("attractor inspect ")
    assert "--depths 0 1 3 --tolerance 0.001 --seed 0" in figures["command"]


def test_numbers_and_figures_are_written_to_the_folder(page) -> None:
    """Numbers for every depth and the equilibrium; every figure is a valid PNG; there is no other file."""
    figures = json.loads((page / "figures.json").read_text())
    assert [point["depth"] for point in figures["points"]] == [0, 1, 3, None]
    assert figures["points"][0]["kl_divergence"] > figures["points"][-1]["kl_divergence"] == 0
    assert {file.name for file in page.iterdir()} == {f"{n}.png" for n in FIGURES} | {"index.html", "figures.json"}
    for name in FIGURES:
        with Image.open(page / f"{name}.png") as image:
            image.load()
            assert image.width > 500


def test_the_same_seed_gives_the_same_page(page, models, data, tmp_path) -> None:
    """Except for the name of the folder."""
    command = ["inspect", str(models / "attractor"), "--data", str(data / "a.jsonl"), str(data / "b.jsonl")]
    assert main([*command, "--out", str(tmp_path), "--depths", "0", "1", "3", "--tolerance", "1e-3"]) == 0
    again = (tmp_path / "index.html").read_text(encoding="utf-8").replace(str(tmp_path), str(page))
    assert again == (page / "index.html").read_text(encoding="utf-8")


def test_the_page_of_a_looped_model_has_no_convergence_sections(models, data, tmp_path, capsys) -> None:
    """It has no evaluations per token and no proposal distance."""
    out = tmp_path / "page"
    command = ["inspect", str(models / "looped"), "--data", str(data), "--out", str(out), "--depths", "0", "2"]
    assert main(command) == 0
    assert {file.stem for file in out.glob("*.png")} == {"depth", "residual", "trajectories"}
    html = (out / "index.html").read_text(encoding="utf-8")
    assert "2 iterations, as trained" in html
    assert "Evaluations in the text" not in html
    assert "index.html" in capsys.readouterr().out


def test_overwriting_replaces_only_its_own_files(models, data, tmp_path) -> None:
    """Other files in the folder stay."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "index.html").write_text("old")
    command = ["inspect", str(models / "looped"), "--data", str(data), "--out", str(tmp_path), "--num-documents", "1"]
    assert main(command) == 2
    assert (tmp_path / "index.html").read_text() == "old"
    assert main([*command, "--overwrite"]) == 0
    assert (tmp_path / "index.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "notes.txt").read_text() == "mine"


MISTAKES = {
    "plain": (["MODELS/plain"], "plain: this AttractorForCausalLM has no solve"),
    "stock": (["MODELS/stock"], "stock: this Qwen3ForCausalLM has no solve"),
    "nothing there": (["MODELS/none"], "no checkpoint here"),
    "tolerance of a loop": (["MODELS/looped", "--tolerance", "1e-3"], "leave out the tolerance"),
    "no such text": (["MODELS/attractor", "--data", "MODELS/no.txt"], "no such file"),
    "not text": (["MODELS/attractor", "--data", "MODELS/attractor/model.safetensors"], "cannot read this kind"),
    "no such field": (["MODELS/attractor", "--field", "txt"], "did you mean 'text'"),
    "no documents": (["MODELS/attractor", "--num-documents", "0"], "num_documents=0"),
    "negative depth": (["MODELS/attractor", "--depths", "1", "-1"], "depths=1 -1"),
    "zero tolerance": (["MODELS/attractor", "--tolerance", "0"], "tolerance=0"),
    "negative seed": (["MODELS/attractor", "--seed", "-1"], "seed=-1"),
    "folder in use": (["MODELS/attractor", "--out", "MODELS"], "not empty"),
}


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_an_error_is_one_line_and_leaves_no_files(name: str, models, data, tmp_path, capsys) -> None:
    """The exit code is 2, and the output folder is not created."""
    arguments, says = MISTAKES[name]
    arguments = [a.replace("MODELS", str(models)) for a in arguments]
    arguments += [] if "--data" in arguments else ["--data", str(data)]
    arguments += [] if "--out" in arguments else ["--out", str(tmp_path / "deep" / "page")]
    before = sorted(models.rglob("*"))
    assert main(["inspect", *arguments]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert sorted(models.rglob("*")) == before


def test_an_exception_leaves_no_files(models, data, tmp_path, monkeypatch) -> None:
    """Also after some figures were written; an existing folder stays."""

    def fail(folder, *more) -> None:
        (folder / "depth.png").write_bytes(b"half")
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("attractor.experiment.inspection.write_report", fail)
    for out in (tmp_path / "new", tmp_path):
        arguments = ["--data", str(data), "--out", str(out), "--num-documents", "1"]
        assert main(["inspect", str(models / "looped"), *arguments]) == 1
        assert list(tmp_path.iterdir()) == []
