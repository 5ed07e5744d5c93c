"""The page with the puzzle models computes what Python computes, and works in a browser."""

import base64
import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import attractor.plots
from attractor.cli import main
from attractor.experiment.pretrained import pretrained
from attractor.models.reasoning import AttractorReasonerConfig
from attractor.nn import GatedConvolutionUpdateConfig, SymmetricUpdateConfig

NETWORKS = Path(attractor.plots.__file__).parent / "templates" / "networks.js"
CONFIGS = {
    "GatedConvolutionNetwork": AttractorReasonerConfig(
        update=GatedConvolutionUpdateConfig(width=8, hidden=12), obstacles=(0,), damping=1.0
    ),
    "SymmetricNetwork": AttractorReasonerConfig(
        update=SymmetricUpdateConfig(width=8, hidden=16, num_layers=2, box_height=2), num_symbols=7, num_classes=7
    ),
}
SCRIPT = """
const { %s: Network, Solve, readSafetensors } = require(process.argv[1]);
const given = JSON.parse(require("fs").readFileSync(process.argv[2]));
const network = new Network(readSafetensors(given.weights), given.config);
const question = { ...given.question, cells: Uint8Array.from(given.question.cells) };
const solve = new Solve(network, question, { damping: given.config.damping, start: Float32Array.from(given.start) });
for (let i = 0; i < 5; i++) solve.step();
console.log(JSON.stringify([Array.from(network.logits(question, solve.next)), solve.residual]));
"""
CHROMIUM = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("name", CONFIGS)
def test_the_networks_in_javascript_have_the_numbers_of_python(name: str, tmp_path) -> None:
    """Logits after five evaluations from one state, and the residual."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    model = config.build().eval()
    questions = torch.randint(0, config.num_symbols, (1, 6, 6)) * (torch.rand(1, 6, 6) < 0.5)
    if name == "SymmetricNetwork":
        questions[0, 1:] = 0  # no clues that exclude each other
        questions[0, 0] = torch.tensor([1, 0, 0, 2, 0, 0])
    start = model.init_state(questions)
    given = {
        "weights": base64.b64encode(save(model.state_dict())).decode(),
        "config": asdict(config),
        "question": {"height": 6, "width": 6, "cells": questions.flatten().tolist()},
        "start": start.flatten().tolist(),
    }
    (tmp_path / "given.json").write_text(json.dumps(given))
    command = ["node", "-e", SCRIPT % name, str(NETWORKS), str(tmp_path / "given.json")]
    logits, residual = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    )
    with torch.no_grad():
        before = model(questions, start, depth=4).solution.value
        found = model(questions, before, depth=1)
        change = (model.make_update(questions)(before) - before).norm() / before.norm()
    assert torch.allclose(torch.tensor(logits), found.logits.flatten(), atol=1e-4)
    assert residual == pytest.approx(float(change), rel=1e-3)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("name", pretrained())
def test_the_page_solves_a_puzzle_in_a_browser(name: str, tmp_path) -> None:
    """Opened as a file, it shows that the answer was verified."""
    assert main(["play", "--out", str(tmp_path / "play.html")]) == 0
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=15000"]
    page = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", f"{(tmp_path / 'play.html').as_uri()}#{name}"],
        capture_output=True, text=True, check=True, timeout=300,
    ).stdout  # fmt: skip
    status = page[page.index('<output id="status"') :].split("</output>")[0]
    assert "The answer is verified" in status, status
