"""Figures of a reasoner's trajectory (a strip of frames, an animation) and of accuracy by depth."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from attractor.errors import requires_extra
from attractor.evaluation.puzzles import DepthPoint
from attractor.files import new_file
from attractor.plots.style import COLOURS, MARKERS, new_figure, save, use_depth_axis, use_log_scale

Image = npt.NDArray[np.uint8]  # (height, width, 3), RGB
Renderer = Callable[[Tensor, int], Image]  # probabilities (height, width, classes) and pixels per cell
# Distinguishable with any colour vision (Okabe & Ito 2008): wall, floor, start, goal, path.
MAZE_COLOURS = np.array(
    [[38, 50, 56], [245, 245, 240], [0, 114, 178], [204, 121, 167], [230, 159, 0]], dtype=np.float32
)
MAZE_CLASSES = ("wall", "floor", "start", "goal", "path")
LEGEND_HEIGHT = 26  # of an animation, in pixels


def render_grid(probabilities: Tensor, scale: int) -> Image:
    """Return an image of a maze, ``scale`` pixels per cell: colours of the classes, mixed by their probabilities."""
    image = probabilities.numpy() @ MAZE_COLOURS
    return np.kron(image, np.ones((scale, scale, 1))).round().astype(np.uint8)


def render_digits(question: Tensor, box: tuple[int, int]) -> Renderer:
    """Return the renderer of a Sudoku: the most likely digit of each cell, darker for a higher probability.

    Givens are black. Where the answer changes a given, the cell is red with a white digit. ``question`` (size, size) is 0
    in blank cells; ``box`` is the height and width of a box in cells.
    """
    with requires_extra("plots"):
        from PIL import Image as Pillow
        from PIL import ImageDraw, ImageFont

    size = question.shape[0]

    def render(probabilities: Tensor, scale: int) -> Image:
        image = Pillow.new("RGB", (size * scale + 1, size * scale + 1), "white")
        draw = ImageDraw.Draw(image)
        font = ImageFont.load_default(round(0.6 * scale))
        confidence, digits = probabilities[..., 1:].max(dim=-1)
        answer = probabilities.argmax(dim=-1)
        for row in range(size):
            for column in range(size):
                given, digit = int(question[row, column]), int(answer[row, column])
                colour: str | tuple[int, ...] = "black"
                if not given:
                    digit = int(digits[row, column]) + 1
                    weight = float(confidence[row, column])
                    colour = tuple(round(255 + weight * (dark - 255)) for dark in (0, 90, 160))
                elif digit != given:
                    left, top = column * scale, row * scale
                    draw.rectangle([left, top, left + scale, top + scale], fill="red")
                    colour = "white"
                draw.text(((column + 0.5) * scale, (row + 0.5) * scale), str(digit or "."), colour, font, anchor="mm")
        for line in range(size + 1):
            for start, end, lines_per_box in (
                ((line * scale, 0), (line * scale, size * scale), box[1]),
                ((0, line * scale), (size * scale, line * scale), box[0]),
            ):
                is_edge = line % lines_per_box == 0
                width = max(1, scale // 20) if is_edge else 1
                draw.line([start, end], fill="black" if is_edge else "lightgrey", width=width)
        return np.asarray(image)

    return render


def plot_trajectory(
    frames: Sequence[Tensor],
    depths: Sequence[int],
    residuals: Sequence[float],
    *,
    strip: Path | None = None,
    animation: Path | None = None,
    render: Renderer = render_grid,
    tolerance: float = 0.0,
) -> None:
    """Write six frames of a trajectory side by side to ``strip`` (PNG), and all of them to ``animation`` (GIF).

    Each frame is titled with its depth and residual, and says "converged" below ``tolerance``.
    """
    titles = [
        # The first evaluation from a state of zero has no relative residual.
        f"depth {depth}\nresidual {'–' if depth == 1 and residual > 1e3 else f'{residual:.0e}'}"
        f"{', converged' if residual < tolerance else ''}"
        for depth, residual in zip(depths, residuals, strict=True)
    ]
    if strip is not None:
        wanted = np.geomspace(depths[0], depths[-1], 6)
        chosen = sorted({int(np.abs(np.asarray(depths) - depth).argmin()) for depth in wanted})
        _plot_strip([frames[i] for i in chosen], [titles[i] for i in chosen], strip, render)
    if animation is not None:
        _animate(frames, titles, animation, render)


def _plot_strip(frames: Sequence[Tensor], titles: Sequence[str], file: Path, render: Renderer) -> None:
    with requires_extra("plots"):
        from matplotlib.patches import Patch

    figure, axes = new_figure(len(frames))
    figure.set_size_inches(2.2 * len(frames), 3.1)
    for axis, frame, title in zip(axes, frames, titles, strict=True):
        axis.imshow(render(frame, 300 // len(frame)), interpolation="none")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    if render is render_grid:
        colours = zip(MAZE_CLASSES, MAZE_COLOURS / 255, strict=True)
        patches = [Patch(facecolor=tuple(colour), edgecolor="grey", label=name) for name, colour in colours]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=9, frameon=False)
    save(figure, file)


def _animate(frames: Sequence[Tensor], titles: Sequence[str], file: Path, render: Renderer) -> None:
    with requires_extra("plots"):
        from PIL import Image as Pillow
        from PIL import ImageDraw, ImageFont

    scale = max(4, 360 // frames[0].shape[0])
    font = ImageFont.load_default(14)
    images = []
    for frame, title in zip(frames, titles, strict=True):
        grid, has_legend = Pillow.fromarray(render(frame, scale)), render is render_grid
        image = Pillow.new("RGB", (grid.width, grid.height + LEGEND_HEIGHT * (1 + has_legend)), "white")
        image.paste(grid, (0, LEGEND_HEIGHT))
        draw = ImageDraw.Draw(image)
        draw.text((6, 5), title.replace("\n", "   "), fill="black", font=font)
        for i, (name, colour) in enumerate(
            zip(MAZE_CLASSES, MAZE_COLOURS.astype(int), strict=True) if has_legend else ()
        ):
            left, top = 6 + i * (grid.width - 6) // len(MAZE_CLASSES), grid.height + LEGEND_HEIGHT + 7
            draw.rectangle([left, top, left + 12, top + 12], tuple(colour.tolist()), "grey")
            draw.text((left + 18, top - 2), name, fill="black", font=font)
        images.append(image.convert("P", palette=Pillow.Palette.ADAPTIVE))
    durations = [90] * (len(images) - 1) + [2500]
    with new_file(file) as part:
        images[0].save(part, save_all=True, append_images=images[1:], duration=durations, loop=0)


def plot_accuracy(curves: Mapping[str, Sequence[DepthPoint]], file: Path) -> None:
    """Plot exact accuracy and median residual by depth, one line per name in ``curves``."""
    figure, (left, right) = new_figure(2)
    for number, (name, points) in enumerate(curves.items()):
        style: Any = {"color": COLOURS[number % 6], "marker": MARKERS[number % 6], "markersize": 4, "label": name}
        depths = [p.depth for p in points]
        left.plot(depths, [100 * p.exact for p in points], **style)
        right.plot(depths, [p.residual for p in points], **style)
    left.set(title="accuracy by depth", ylabel="unseen mazes right in every cell (%)", ylim=(-3, 103))
    right.set(title="convergence by depth", ylabel="median relative residual")
    left.legend(fontsize=9)
    use_log_scale(right)
    for axes in (left, right):
        use_depth_axis(axes)
    save(figure, file)
