"""Write the folders beside this file: random weights in the published formats, and what they must compute.

Run with ``python tests/interop/reasoner_tiny/generate.py`` after a change of the format only. The same formats were
compared with the authors' code on larger random networks.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from attractor.interop.reasoner_checkpoint import export_reasoner, import_reasoner
from attractor.models.reasoning import EqRConfig, HRMConfig, TRMConfig, TRMDEQConfig
from attractor.nn import GridNetworkConfig, TRMUpdateConfig

NETWORK = {"width": 8, "num_layers": 1, "hidden": 256, "cell_hidden": 256, "num_heads": 2, "grid_positions": False}
SYMBOLS = {"num_symbols": 6, "num_classes": 6, "evaluations_per_segment": 2}


def network(mixing: str = "attention", num_cells: int = 4, **changes) -> GridNetworkConfig:
    return GridNetworkConfig(**{**NETWORK, "mixing": mixing, "num_cells": num_cells, **changes})


CONFIGS = {
    "trm": TRMConfig(**SYMBOLS, update=TRMUpdateConfig(network=network("mixer"), num_latent=2)),
    "eqr": EqRConfig(**SYMBOLS, noise=0.0, update=TRMUpdateConfig(network=network(grid_positions=True), num_latent=2)),
    "hrm": HRMConfig(**SYMBOLS, num_name_tokens=1, network=network(num_cells=5), num_latent=2),
    "trm-deq": TRMDEQConfig(**SYMBOLS, num_name_tokens=3, network=network(num_cells=7)),
}


@torch.no_grad()
def write(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    model = CONFIGS[name].build()
    for weight in model.parameters():
        weight.copy_(0.3 * torch.randn_like(weight))
    export_reasoner(model, folder, num_cells=4)
    save_file({k: v.half() for k, v in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors")
    model = import_reasoner(folder).double()
    questions = torch.randint(0, 6, (2, 2, 2))
    expected = {"inputs": questions, "state": model.init_state(questions).contiguous()}
    state = expected["state"]
    for segment in (1, 2, 3):
        output = model(questions, state)
        state = output.solution.value
        expected |= {f"logits_{segment}": output.logits.float(), f"halt_{segment}": output.halt.float()}
    save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")


if __name__ == "__main__":
    for name in CONFIGS:
        write(name, Path(__file__).parent / name)
