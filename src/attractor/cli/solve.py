"""``attractor solve``: mazes from a text file, answered and checked."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.text import Text

from attractor.cli.reasoning import load_reasoner
from attractor.data import mazes
from attractor.errors import DataError

STYLES = {"#": "grey37", "S": "bold cyan", "G": "bold magenta", "o": "bold yellow"}


def solve(
    checkpoint: Path,
    maze: Path,
    /,
    depth: int = 2048,
    tolerance: float = 1e-4,
    breadth: int = 1,
    seed: int = 0,
) -> None:
    """Solve the mazes in a text file by iterating to rest; print answer, residual, evaluations and verdict.

    Args:
        checkpoint: A checkpoint's folder, or a run's folder, whose newest is taken.
        maze: Text with "#" for walls, spaces, one S and one G; blank lines between several mazes. "-" reads standard input.
        depth: The most evaluations.
        tolerance: The relative residual at which the answer is at rest.
        breadth: Random starts to try; the answer that rests most is kept.
        seed: Of the random start.
    """
    grids = _from_standard_input() if str(maze) == "-" else mazes.read(maze)
    model = load_reasoner(checkpoint, "maze").model
    console = Console()
    for grid in grids:
        begun = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        question = torch.from_numpy(grid).long()[None]
        output = model.solve(question, depth=depth, tolerance=tolerance, breadth=breadth, generator=generator)
        seconds = time.perf_counter() - begun
        answer = output.logits[0].argmax(dim=-1).numpy().astype(np.uint8)
        drawn = Text(mazes.render(answer).rstrip("\n"))
        for symbol, style in STYLES.items():
            drawn.highlight_words([symbol], style)
        console.print(drawn, soft_wrap=True)  # a maze wider than the window stays a maze
        residual, evaluations = float(output.solution.residual[0]), int(output.solution.evaluations[0])
        rest = "at rest" if residual < tolerance else f"not at rest within depth {depth}"
        console.print(f"{mazes.verdict(grid, answer)}")
        console.print(f"residual {residual:.1e} ({rest}), {evaluations} evaluations, {seconds:.2f} s\n")


def _from_standard_input() -> list[mazes.Grid]:
    try:
        return mazes.parse_all(sys.stdin.read(), source="standard input")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text (byte {error.start}); give mazes as plain text.") from error
