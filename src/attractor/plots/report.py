"""One page about a language model's equilibrium: pictures as PNG, and a page of HTML that holds them and needs nothing else."""

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # pictures go to files; no screen is needed
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from attractor.evaluation.internalisation import Internalisation, TokenFigures, Trajectories

SHADES = 8  # colours of the text
TINY = 1e-9  # what a residual of zero is drawn at
BLUE, ORANGE, GREY = "#1f77b4", "#e07b00", "#777777"
RGB = "234, 128, 0"  # of the text's shades, laid over the page's own background

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b1f23; --dim: #59636e; --line: #d5dae0; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --text: #e6e8ea; --dim: #9aa4ae; --line: #363c43; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--text);
       font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0 .75rem; } .look, .note { color: var(--dim); } .note { font-size: .875rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .75rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
tr.rest td { font-weight: 600; } table.depths :is(th, td) { white-space: nowrap; }
table.about { overflow-wrap: anywhere; } table.about td { text-align: left; vertical-align: top; }
table.about td:first-child { color: var(--dim); white-space: nowrap; } code { font: .875em/1.5 ui-monospace, monospace; }
figure { margin: .5rem 0; overflow-x: auto; }
img { display: block; width: 100%; min-width: 36rem; height: auto; background: #fff; border-radius: 6px; }
.read { white-space: pre-wrap; border: 1px solid var(--line); border-radius: 6px; padding: .75rem; margin: .75rem 0;
        font: 15px/1.75 Georgia, "DejaVu Serif", serif; }
.read span { border-radius: 2px; } .legend span { display: inline-block; padding: 0 .55rem; margin-right: 1px; color: var(--text); }
"""


def write_report(
    folder: Path,
    found: Internalisation,
    paths: Trajectories,
    readings: Sequence[tuple[Sequence[str], TokenFigures]],
    about: Mapping[str, str],
) -> None:
    """Write the pictures and ``index.html`` into ``folder``, which exists.

    Parameters
    ----------
    found, paths
        What was measured.
    readings
        Passages to show: the text of their tokens, and the solve of each, of equal length.
    about
        What the page says of its making, by name: the command, the checkpoint.
    """
    drawings: dict[str, Callable[[Path], None]] = {
        "depth": lambda file: draw_depth(found, file),
        "residual": lambda file: draw_residual(found, paths, file),
        "trajectories": lambda file: draw_trajectories(paths, file),
    }
    if found.tolerance is not None:
        drawings["evaluations"] = lambda file: draw_evaluations(found, file)
    if found.distance is not None:
        drawings["distance"] = lambda file: draw_distance(found, file)
    for name, draw in drawings.items():
        draw(folder / f"{name}.png")
    images = {name: _data(folder / f"{name}.png") for name in drawings}
    (folder / "index.html").write_text(_page(found, paths, readings, about, images), encoding="utf-8")


def draw_depth(found: Internalisation, file: Path) -> None:
    """Plot bits per byte and the divergence from rest against depth."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
    points = [p for p in found.points if p.depth is not None]
    depths = [p.depth for p in points]
    left.plot(depths, [p.bits_per_byte for p in points], color=BLUE, marker="o", label="at a fixed depth")
    rest, name = found.rest, _rest(found)
    left.axhline(rest.bits_per_byte, color=ORANGE, linestyle="--", label=f"{name}: {rest.bits_per_byte:.4f}")
    left.set(xlabel="depth (evaluations)", ylabel="bits per byte")
    left.legend(fontsize=9)
    right.plot(depths, [max(p.divergence, TINY) for p in points], color=BLUE, marker="o")
    right.set(xlabel="depth (evaluations)", ylabel="KL(p_rest ‖ p_depth), nats per token", yscale="log")
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, file)


def draw_residual(found: Internalisation, paths: Trajectories, file: Path) -> None:
    """Plot the residual against evaluations: the median over tokens, and the band that holds 80 % of them."""
    figure, axis = plt.subplots(figsize=(9.5, 3.8))
    sizes = paths.residual.double().clamp_min(TINY)
    low, middle, high = torch.nanquantile(sizes, torch.tensor([0.1, 0.5, 0.9], dtype=sizes.dtype), dim=1).tolist()
    steps = range(len(sizes))
    axis.fill_between(steps, low, high, color=BLUE, alpha=0.2, linewidth=0, label="10 to 90 % of tokens")
    axis.plot(steps, middle, color=BLUE, marker="o", markersize=4, label="median")
    if found.tolerance is not None:
        axis.axhline(found.tolerance, color=ORANGE, linestyle="--", label=f"tolerance {found.tolerance:g}")
    axis.set(xlabel="evaluations made", ylabel="residual ‖update(y) − y‖ / ‖y‖", yscale="log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=9)
    _save(figure, file)


def draw_evaluations(found: Internalisation, file: Path) -> None:
    """Draw how many tokens took how many evaluations."""
    figure, axis = plt.subplots(figsize=(9.5, 3.2))
    counts = torch.cat([t.evaluations for t in found.tokens]).bincount()
    used = range(int(counts.nonzero()[0]), len(counts))
    axis.bar(used, (100 * counts / counts.sum())[used.start :].tolist(), color=BLUE, width=0.9)
    mean = found.rest.evaluations
    axis.axvline(mean, color=ORANGE, linestyle="--", label=f"mean {mean:.2f}")
    axis.set(xlabel="evaluations until rest", ylabel="tokens, %")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=9)
    _save(figure, file)


def draw_distance(found: Internalisation, file: Path) -> None:
    """Draw how far tokens lie from their proposals at rest."""
    figure, axis = plt.subplots(figsize=(9.5, 3.2))
    values = torch.cat([t.distance for t in found.tokens if t.distance is not None]).double()
    values = values[values.isfinite()]
    most = max(float(values.quantile(0.999)), TINY) if len(values) else 1.0  # a few far ones would squeeze the rest
    share = torch.full_like(values, 100 / max(len(values), 1))
    axis.hist(values.clamp_max(most).numpy(), bins=48, range=(0, most), weights=share.numpy(), color=BLUE)
    if found.distance is not None:
        axis.axvline(found.distance, color=ORANGE, linestyle="--", label=f"mean {found.distance:.3f}")
    axis.set(xlabel="‖y* − c‖ / ‖c‖", ylabel="tokens, %")
    axis.legend(fontsize=9)
    _save(figure, file)


def draw_trajectories(paths: Trajectories, file: Path) -> None:
    """Draw the ways of some tokens on principal components: where they lie, and relative to where each of them ends."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.6))
    sides: list[tuple[Any, Tensor, tuple[float, float], str]] = [
        (axes[0], paths.paths, paths.explained, "where they are"),
        (axes[1], paths.moves, paths.explained_moves, "seen from where each ends"),
    ]
    for axis, states, explained, title in sides:
        for token in states.unbind(dim=1):
            axis.plot(*token.T.tolist(), color=GREY, linewidth=0.8, marker=".", markersize=3, zorder=1)
        start, end = states[0].T.tolist(), states[-1].T.tolist()
        axis.scatter(*start, s=16, facecolor="white", edgecolor=BLUE, zorder=2, label="start")
        axis.scatter(*end, s=16, color=ORANGE, zorder=3, label=f"after {len(states) - 1} evaluations")
        axis.set_title(title, fontsize=10)
        axis.set(xlabel=f"component 1 ({explained[0]:.0%})", ylabel=f"component 2 ({explained[1]:.0%})")
    axes[0].legend(fontsize=9)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _data(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _rest(found: Internalisation) -> str:
    return "at rest" if found.tolerance is not None else "as trained"


def _page(
    found: Internalisation,
    paths: Trajectories,
    readings: Sequence[tuple[Sequence[str], TokenFigures]],
    about: Mapping[str, str],
    images: Mapping[str, str],
) -> str:
    rest, depth = _rest(found), len(paths.paths) - 1
    sections = [
        _section(
            "By depth",
            "Look at how little is lost without iterating: the closer depth 0 and 1 come to the last row, the more of the "
            "equilibrium the proposal has internalised.",
            _depths(found),
            "Residual: mean ‖update(y) − y‖ / ‖y‖ at the state that is decoded. FLOPs: floating-point operations a token, "
            f"counting for each token the evaluations it used, with {found.length:,} tokens in the window. KL: "
            f"KL(p_rest ‖ p_depth), nats per token. Same token: share of positions whose likeliest token is the one {rest}.",
        ),
        _section(
            "In figures",
            "Look for a spectral radius below 1, with which plain iteration settles, and a short way from proposal to rest.",
            _headline(found),
        ),
        _section(
            "Loss against depth",
            "Look at where the curve meets the dashed line: more evaluations than that do not predict better.",
            _picture("depth", "Bits per byte and divergence against depth", images),
        ),
        _section(
            "Residual against evaluations",
            "Look for a straight fall: the update contracts; a plateau would be precision's floor or a map that does not settle.",
            _picture("residual", "Residual against evaluations", images),
            f"{paths.residual.shape[1]:,} tokens, none of which stops early.",
        ),
    ]
    if found.tolerance is not None:
        sections += [
            _section(
                "Evaluations over text",
                "Look at which tokens are coloured most strongly: they needed the most evaluations before they could rest.",
                _readings(readings),
                "A token’s colour belongs to its own state, from which the next token is predicted; point at it for its figures. "
                "Counts rise along a window, as a token rests only once those before it do.",
            ),
            _section(
                "Evaluations per token",
                "Look at the right tail: in one batch, the slowest tokens decide how long a solve takes.",
                _picture("evaluations", "Histogram of evaluations per token", images),
            ),
        ]
    sections.append(
        _section(
            "Trajectories",
            "Look for ways that are short beside the distances between tokens (left), and straight rather than circling (right).",
            _picture("trajectories", "Trajectories of tokens on two principal components", images),
            f"{paths.paths.shape[1]} tokens through {depth} evaluations; states on the two principal components of all of them.",
        )
    )
    if found.distance is not None:
        sections.append(
            _section(
                "From proposal to equilibrium",
                "Look at how far left it lies: at 0 the proposal would be the equilibrium.",
                _picture("distance", "Histogram of the distance from proposal to equilibrium", images),
                "The farthest token in a thousand is counted in the last bar.",
            )
        )
    rows = "".join(f"<tr><td>{escape(k)}</td><td><code>{escape(v)}</code></td></tr>" for k, v in about.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Between proposal and equilibrium</title><style>{STYLE}{_shades()}</style></head><body>\n"
        "<h1>Between proposal and equilibrium</h1>\n"
        f'<p class="look">{_summary(found)}</p>\n'
        + "".join(sections)
        + f'<section><h2>How this page was made</h2><table class="about">{rows}</table></section>\n'
        "</body></html>\n"
    )


def _summary(found: Internalisation) -> str:
    text = (
        f"{found.num_tokens:,} tokens ({found.num_bytes:,} bytes) of {found.num_documents:,} held-out document(s), "
        f"read through a window of {found.length:,} tokens"
    )
    if found.tolerance is None:
        return f"{text}. “As trained” is after the model’s own {found.rest.evaluations:g} iterations."
    return (
        f"{text}; a token is at rest when its residual is below {found.tolerance:g}, as {found.final:.1%} of them were."
    )


def _section(title: str, look: str, body: str, note: str = "") -> str:
    after = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section><h2>{escape(title)}</h2><p class="look">{escape(look)}</p>\n{body}{after}</section>\n'


def _picture(name: str, alternative: str, images: Mapping[str, str]) -> str:
    return f'<figure><img alt="{escape(alternative)}" src="{images[name]}"></figure>'


def _depths(found: Internalisation) -> str:
    names = ("depth", "bits per byte", "evaluations", "residual", "FLOPs", "KL", "same token")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = []
    for p in found.points:
        cells = (
            _rest(found) if p.depth is None else str(p.depth),
            f"{p.bits_per_byte:.4f}",
            f"{p.evaluations:.2f}",
            f"{p.residual:.1e}",
            _big(p.flops_per_token),
            f"{p.divergence:.2g}",
            f"{p.agreement:.1%}",
        )
        kind = ' class="rest"' if p.depth is None else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table class="depths"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _big(value: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.1f} {name}"
    return f"{value / 1e3:.1f} k"


def _headline(found: Internalisation) -> str:
    by_depth = {p.depth: p for p in found.points}
    rows = []
    if 0 in by_depth:
        rows.append(("KL(p_equilibrium ‖ p_depth 0), nats per token", f"{by_depth[0].divergence:.4f}"))
    rows += [
        (f"likeliest token the same at depth {d} and {_rest(found)}", f"{by_depth[d].agreement:.1%}")
        for d in (0, 1)
        if d in by_depth
    ]
    for name, value in (
        ("mean way from proposal to equilibrium, ‖y* − c‖ / ‖c‖", found.distance),
        ("mean gate", found.gate),
        ("spectral radius of the update at the equilibrium", found.spectral_radius),
    ):
        if value is not None:
            rows.append((name, f"{value:.3f}"))
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{value}</td></tr>" for name, value in rows)
    return f'<div class="scroll"><table>{cells}</table></div>'


def _shades() -> str:
    return "".join(f".e{i} {{ background: rgba({RGB}, {0.6 * i / (SHADES - 1):.3f}); }}\n" for i in range(SHADES))


def _shade(count: int, low: int, high: int) -> int:
    return round((SHADES - 1) * (count - low) / max(high - low, 1))


def _readings(readings: Sequence[tuple[Sequence[str], TokenFigures]]) -> str:
    counts = [n for _, figures in readings for n in figures.evaluations.tolist()] or [0]
    low, high = min(counts), max(counts)
    named = sorted({low + round(i * (high - low) / (SHADES - 1)) for i in range(SHADES)})
    boxes = "".join(f'<span class="e{_shade(n, low, high)}">{n}</span>' for n in named)
    blocks = "".join(f'<div class="read">{_spans(*reading, low, high)}</div>' for reading in readings)
    return f'<p class="legend">{boxes} evaluations</p>{blocks}'


def _spans(parts: Sequence[str], figures: TokenFigures, low: int, high: int) -> str:
    rows = zip(parts, figures.evaluations.tolist(), figures.residual.tolist(), strict=True)
    return "".join(
        f'<span class="e{_shade(n, low, high)}" title="{n} evaluations, residual {size:.1e}">{escape(part)}</span>'
        for part, n, size in rows
        if part
    )
