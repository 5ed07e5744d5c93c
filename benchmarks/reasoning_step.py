"""The cost of one training step of a recursive reasoner: TRM in its authors' loop, TRM here, and the attractor
reasoner.

    python -m benchmarks.reasoning_step [--size 9] [--width 128] [--batch 64] [--repeats 20] [--threads 1]
        [--device cpu] [--bf16]

A step is the forward pass of one segment, the cross-entropy, the backward pass and AdamW; the state is carried over.
Every side has the same weights, shapes and number of updates: two cycles of three latent steps and one answer step, the
last cycle differentiated. The straight loop writes layers as TRM's authors do, with PyTorch's own products and
transposes. Sides alternate in one process, so that other load on the machine affects all of them. Printed, and written
to ``results/reasoning/step-PRECISION[-wWIDTH].json``, are medians of a step's wall-clock seconds, its CPU seconds
(which other load affects less), and both speed-ups over the straight loop in the same round. Nothing is compiled again
after warming up. Sides share compiled code, so only the first of two pays for it. On a GPU, the table adds peak memory,
host synchronisations per step, and the share of the device's peak FLOP/s.
"""

import copy
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from attractor.experiment.device import peak_flops
from attractor.experiment.environment import environment
from attractor.files import write_json
from attractor.models.reasoning import TRM, AttractorReasonerConfig, TRMConfig
from attractor.nn import GridNetworkConfig, TRMUpdateConfig
from benchmarks.command import run_command

OUT = Path("results/reasoning")
WARM_UP = 3  # the initial state, a carried state, and a step that must not compile anything
Segment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # questions and state to logits and state


class Side:
    """A model in training and the function that runs one of its segments."""

    def __init__(self, model: nn.Module, segment: Segment, state: Tensor, dtype: torch.dtype) -> None:
        self.model, self.segment, self.state, self.dtype = model, segment, state, dtype
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.seconds: list[tuple[float, float]] = []  # wall-clock and CPU
        self.graphs = 0

    def step(self, questions: Tensor, answers: Tensor) -> None:
        """Make one training step."""
        with torch.autocast(questions.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits, state = self.segment(questions, self.state)
            loss = F.cross_entropy(logits.flatten(0, -2), answers.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.state = state.detach()

    def timed(self, questions: Tensor, answers: Tensor) -> tuple[float, float]:
        """Make one training step and return its wall-clock seconds, with the device's work, and its CPU seconds."""
        before = counters["stats"]["unique_graphs"]
        wait(questions.device)
        start, cpu_start = time.perf_counter(), time.process_time()
        self.step(questions, answers)
        wait(questions.device)
        seconds = time.perf_counter() - start, time.process_time() - cpu_start
        self.graphs += counters["stats"]["unique_graphs"] - before
        return seconds


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def straight_loop(model: TRM) -> Segment:
    """Return TRM's segment as a straight loop over straight layers, with the model's weights."""
    config = model.config

    def mlp(weights: Any, x: Tensor) -> Tensor:
        gate, up = F.linear(x, weights.gate_up_proj.weight).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, weights.down_proj.weight)

    def net(x: Tensor, injection: Tensor) -> Tensor:
        x = x + injection
        for layer in model.update.net.layers:
            x = x + mlp(layer.mlp_t, x.transpose(1, 2)).transpose(1, 2)
            x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5)
            x = F.rms_norm(x + mlp(layer.mlp, x), x.shape[-1:], eps=1e-5)
        return x

    def segment(questions: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x = model.embedding(questions).flatten(1, 2)
        y, z = state.flatten(1, 2).chunk(2, dim=-1)
        with torch.no_grad():
            for _ in range(config.evaluations_per_segment - 1):
                for _ in range(config.update.num_latent):
                    z = net(z, y + x)
                y = net(y, z)
        for _ in range(config.update.num_latent):
            z = net(z, y + x)
        y = net(y, z)
        return model.lm_head(y), torch.cat([y, z], dim=-1).view(state.shape)

    return segment


def through_reasoner(model: nn.Module) -> Segment:
    """Return the segment of any reasoner of this package."""

    def segment(questions: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output: Any = model(questions, state)
        return output.logits, output.solution.value

    return segment


def build(size: int, width: int, questions: Tensor, dtype: torch.dtype) -> dict[str, Side]:
    """Return all sides; sides of the same model have equal weights."""
    network = GridNetworkConfig(width=width, hidden=3 * width, num_cells=size**2)
    update, symbols = TRMUpdateConfig(network=network), {"num_symbols": size + 1, "num_classes": size + 1}
    trm = TRMConfig(**symbols, update=update, evaluations_per_segment=2).build().to(questions.device)
    attractor = (
        AttractorReasonerConfig(**symbols, update=update, evaluations_per_segment=2, backprop_steps=1)
        .build()
        .to(questions.device)
    )

    def side(model: Any, compiled: Callable[[Any], nn.Module] | None = None, loop: Any = through_reasoner) -> Side:
        model = copy.deepcopy(model)
        if compiled is not None:
            compiled(model).compile()
        return Side(model, loop(model), model.init_state(questions), dtype)

    return {
        "straight loop": side(trm, loop=straight_loop),
        "TRM": side(trm),
        "TRM, layers compiled": side(trm, lambda model: model.update.net),
        "TRM, update compiled": side(trm, lambda model: model.update),
        "attractor": side(attractor),
        "attractor, update compiled": side(attractor, lambda model: model.update),
    }


def host_waits(run: Callable[[], Any]) -> int:
    """Count the host synchronisations in ``run``."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


def main(
    size: int = 9,
    width: int = 128,
    batch: int = 64,
    repeats: int = 20,
    threads: int = 1,
    device: str = "cpu",
    bf16: bool = False,
) -> None:
    """Measure, print and write.

    Args:
        size: Rows and columns of a puzzle.
        width: Channels per cell.
        batch: Puzzles per step.
        repeats: Steps of each side.
        threads: CPU threads.
        device: cpu or cuda.
        bf16: Mixed precision.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    questions, answers = torch.randint(1, size + 1, (2, batch, size, size), device=device)
    dtype = torch.bfloat16 if bf16 else torch.float32
    sides = build(size, width, questions, dtype)
    rows: dict[str, dict[str, Any]] = {}
    with FlopCounterMode(display=False) as counter:
        sides["TRM"].step(questions, answers)
    flops = counter.get_total_flops()
    for name, side in sides.items():
        warm_up = [side.timed(questions, answers) for _ in range(WARM_UP)]
        rows[name] = {"graphs": side.graphs, "warm_up_seconds": sum(seconds for seconds, _ in warm_up)}
        if questions.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            rows[name]["host_waits"] = host_waits(partial(side.step, questions, answers))
            rows[name]["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    for _ in range(repeats):
        for side in sides.values():
            side.seconds.append(side.timed(questions, answers))
    straight = sides["straight loop"].seconds
    for name, side in sides.items():
        assert side.graphs == rows[name]["graphs"], f"{name}: compiled again after warming up"
        median, processor = (statistics.median(seconds) for seconds in zip(*side.seconds, strict=True))
        speed_ups = ([b / a for a, b in zip(*turn, strict=True)] for turn in zip(side.seconds, straight, strict=True))
        speed_up, processor_speed_up = (statistics.median(ratios) for ratios in zip(*speed_ups, strict=True))
        rows[name] |= {"ms": 1e3 * median, "processor_ms": 1e3 * processor}
        rows[name] |= {"speed_up": speed_up, "processor_speed_up": processor_speed_up}
        if questions.is_cuda:
            rows[name]["mfu"] = flops / median / peak_flops(questions.device, dtype)
    num_parameters = sum(p.numel() for p in sides["TRM"].model.parameters())
    view = Table(
        title=f"a training step: {size}×{size}, width {width}, batch {batch}, {dtype}; {num_parameters:,} parameters, "
        f"{flops / 1e9:.1f} GFLOP",
        title_justify="left",
    )
    for column in ("side", *next(iter(rows.values()))):
        view.add_column(column.replace("_", " "), justify="right", no_wrap=True)
    for name, row in rows.items():
        view.add_row(name, *(f"{v:.3g}" if isinstance(v, float) and v < 10 else f"{v:.0f}" for v in row.values()))
    Console(width=140).print(view)
    settings = (
        f"--size {size} --width {width} --batch {batch} --repeats {repeats} --threads {threads} --device {device}"
    )
    settings += " --bf16" * bf16
    write_json(
        OUT / f"step-{'bf16' if bf16 else 'float32'}{f'-w{width}' * (width != 128)}.json",
        {
            "command": f"python -m benchmarks.reasoning_step {settings}",
            "environment": environment(),
            "num_parameters": num_parameters,
            "flops": flops,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    run_command(main)
