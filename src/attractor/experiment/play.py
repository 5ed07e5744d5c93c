"""A page on which the pretrained puzzle models run: one HTML file, without a server or a network."""

import base64
import json

from attractor.data import SUDOKU
from attractor.errors import requires_extra
from attractor.experiment.loading import load_reasoner
from attractor.experiment.pretrained import pretrained
from attractor.training import read_run

NUM_EXAMPLES = 12  # Sudokus to choose from; mazes are drawn in the page


def play_page() -> str:
    """Return the page as HTML: draw a maze or write a Sudoku, and watch the state converge evaluation by evaluation."""
    with requires_extra("plots"):
        from jinja2 import Environment, PackageLoader
    models = {}
    for name in pretrained():
        loaded = load_reasoner(name, device="cpu")
        kind, size = loaded.puzzle.kind, loaded.size
        models[name] = {
            "kind": kind,
            "title": kind.capitalize() if kind == "maze" else f"{kind.capitalize()} {size} × {size}",
            "config": read_run(loaded.path)["recipe"]["model"],
            "weights": base64.b64encode((loaded.path / "model.safetensors").read_bytes()).decode(),
            "examples": _examples(size) if kind == SUDOKU.kind else [],
        }
    template = Environment(loader=PackageLoader("attractor.plots")).get_template("play.html.j2")
    return template.render(models=json.dumps(models))


def _examples(size: int) -> list[str]:
    clues = {6: 10, 9: 30}.get(size)  # minimal 9 × 9 puzzles often need a search, which the page does not have
    puzzles = SUDOKU.generate(NUM_EXAMPLES, size=size, seed=2026, clues=clues)
    return ["".join(map(str, grid.flat)) for grid in puzzles.questions]
