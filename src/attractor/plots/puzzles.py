"""Pictures of an answer that settles: a strip of moments, an animation, and curves over depth."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # pictures go to files; no screen is needed
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from attractor.evaluation.puzzles import DepthPoint

Paint = Callable[[Tensor, int], npt.NDArray[np.uint8]]  # probabilities (height, width, classes), pixels a cell
# wall, floor, start, goal, path; chosen to stay apart for colour-blind readers
COLOURS = np.array([[38, 50, 56], [245, 245, 240], [0, 121, 107], [194, 24, 91], [255, 160, 0]], dtype=np.float32)


def render_grid(probabilities: Tensor, scale: int) -> npt.NDArray[np.uint8]:
    """Mix the colours of the classes by their probabilities: (height, width, classes) to an RGB image ``scale`` times as large."""
    image = probabilities.numpy() @ COLOURS
    return np.kron(image, np.ones((scale, scale, 1))).round().astype(np.uint8)


def render_digits(question: Tensor, box: tuple[int, int]) -> Paint:
    """Return what draws the board of a Sudoku: the likeliest digit of each cell, the darker the surer.

    Givens are black where the answer keeps them; what stands in place of a given is red.

    ``question`` is (size, size), ``box`` the (height, width) of a box in cells.
    """
    size = question.shape[0]

    def render_grid(probabilities: Tensor, scale: int) -> npt.NDArray[np.uint8]:
        image = Image.new("RGB", (size * scale + 1, size * scale + 1), "white")
        draw = ImageDraw.Draw(image)
        font = ImageFont.load_default(round(0.6 * scale))
        chance, digits = probabilities[..., 1:].max(dim=-1)
        answer = probabilities.argmax(dim=-1)
        for row in range(size):
            for column in range(size):
                given, sure = int(question[row, column]), float(chance[row, column])
                faint = tuple(round(255 + sure * (dark - 255)) for dark in (0, 90, 160))
                where = ((column + 0.5) * scale, (row + 0.5) * scale)
                digit = int(answer[row, column]) if given else int(digits[row, column]) + 1
                colour = faint if not given else "black" if digit == given else "red"
                draw.text(where, str(digit or "."), colour, font, anchor="mm")
        for line in range(size + 1):
            for end, start, thick in (
                ((line * scale, size * scale), (line * scale, 0), line % box[1] == 0),
                ((size * scale, line * scale), (0, line * scale), line % box[0] == 0),
            ):
                draw.line(
                    [start, end], fill="black" if thick else "lightgrey", width=max(1, scale // 20) if thick else 1
                )
        return np.asarray(image)

    return render_grid


def plot_trajectory(
    frames: Sequence[Tensor],
    depths: Sequence[int],
    residuals: Sequence[float],
    *,
    strip: Path | None = None,
    animation: Path | None = None,
    render_grid: Paint = render_grid,
) -> None:
    """Write a strip of six moments (PNG), and the whole trajectory (GIF), whichever of them has a place."""
    if strip is not None:
        _strip(frames, depths, residuals, strip, render_grid)
    if animation is not None:
        _animate(frames, depths, residuals, animation, render_grid)


def _strip(
    frames: Sequence[Tensor], depths: Sequence[int], residuals: Sequence[float], file: Path, render_grid: Paint
) -> None:
    chosen = sorted({round(i) for i in np.geomspace(1, len(frames), 6)})
    figure, axes = plt.subplots(1, len(chosen), figsize=(2.3 * len(chosen), 2.8), squeeze=False)
    for axis, index in zip(axes[0], chosen, strict=True):
        axis.imshow(render_grid(frames[index - 1], 300 // len(frames[index - 1])), interpolation="none")
        axis.set_title(f"depth {depths[index - 1]}\nresidual {residuals[index - 1]:.0e}", fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _animate(
    frames: Sequence[Tensor], depths: Sequence[int], residuals: Sequence[float], file: Path, render_grid: Paint
) -> None:
    scale = max(4, 360 // frames[0].shape[0])
    font = ImageFont.load_default(14)
    images = []
    for frame, depth, residual in zip(frames, depths, residuals, strict=True):
        body = Image.fromarray(render_grid(frame, scale))
        image = Image.new("RGB", (body.width, body.height + 26), "white")
        image.paste(body, (0, 26))
        ImageDraw.Draw(image).text((6, 5), f"depth {depth:4d}   residual {residual:.1e}", fill="black", font=font)
        images.append(image.convert("P", palette=Image.Palette.ADAPTIVE, colors=64))
    durations = [90] * (len(images) - 1) + [2500]
    images[0].save(file, save_all=True, append_images=images[1:], duration=durations, loop=0)


def plot_accuracy(curves: Mapping[str, Sequence[DepthPoint]], file: Path) -> None:
    """Plot exact accuracy and median residual against depth, one line per name in ``curves``."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
    for name, points in curves.items():
        depths = [p.depth for p in points]
        left.plot(depths, [100 * p.exact for p in points], marker="o", markersize=3, label=name)
        right.plot(depths, [p.residual for p in points], marker="o", markersize=3, label=name)
    left.set(xscale="log", xlabel="depth (evaluations)", ylabel="exact grids, %", ylim=(-3, 103))
    right.set(xscale="log", yscale="log", xlabel="depth (evaluations)", ylabel="median residual")
    left.set_xscale("log", base=2)
    right.set_xscale("log", base=2)
    left.legend(title="unseen mazes", fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
