"""The HTML report and its figures, from numbers that need no model."""

import pytest
import torch
from PIL import Image

from attractor.evaluation import DepthStats, Internalisation, TokenStats, Trajectories
from attractor.plots.internalisation import plot_depth, plot_residual, plot_state_paths
from attractor.plots.report import write_report


def depth_stats(depth: int | None, kl_divergence: float = 1e-3) -> DepthStats:
    return DepthStats(
        depth=depth,
        bits_per_byte=1.5,
        evaluations=5.0 if depth is None else float(depth),
        residual=1e-4,
        flops_per_token=3e9,
        kl_divergence=kl_divergence,
        top1_agreement=0.75,
    )


@pytest.fixture
def found() -> Internalisation:
    tokens = TokenStats(
        evaluations=torch.tensor([40, 41, 45, 60]),
        residual=torch.full((4,), 1e-5),
        proposal_distance=torch.tensor([0.1, 0.2, 0.3, 0.4]),
    )
    return Internalisation(
        num_documents=1,
        num_tokens=4,
        num_bytes=12,
        length=16,
        tolerance=1e-4,
        converged_fraction=1.0,
        verified_fraction=1.0,
        points=(depth_stats(0, 0.5), depth_stats(1, 1e-3), depth_stats(None, 0.0)),
        tokens=(tokens,),
        gate=0.3,
        spectral_radius=0.7,
    )


@pytest.fixture
def paths() -> Trajectories:
    states = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    residual = 10.0 ** -torch.arange(4.0)[:, None].expand(4, 6)
    return Trajectories(
        residual=residual, paths=states, offsets=states - states[-1], explained=(0.6, 0.2), explained_offsets=(0.5, 0.1)
    )


def test_the_page_escapes_all_texts(found, paths, tmp_path) -> None:
    """Passages and rows about the page may hold markup."""
    passages = [(["<b>", "a & b", "", "c"], found.tokens[0])]
    write_report(tmp_path, found, paths, passages, {"command": "<script>"})
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;</span>" in html
    assert "a &amp; b</span>" in html
    assert "<code>&lt;script&gt;</code>" in html
    assert "<script" not in html
    assert html.count("data:image/png;base64,") == len(list(tmp_path.glob("*.png"))) == 5


def test_the_token_colours_use_the_range_of_the_passages(found, paths, tmp_path) -> None:
    """The fewest evaluations are transparent, the most have the strongest colour, and the legend shows both."""
    write_report(tmp_path, found, paths, [(["a", "b", "c", "d"], found.tokens[0])], {})
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert '<span style="--opacity:0.000" title="40 evaluations, residual 1.0e-05">a</span>' in html
    assert '<span style="--opacity:0.600" title="60 evaluations, residual 1.0e-05">d</span>' in html
    assert '<span style="--opacity:0.000">40</span>' in html
    assert '<span style="--opacity:0.600">60</span>' in html


def test_every_axis_has_a_label(found, paths) -> None:
    """In words, and curves with a reference have a legend."""
    for figure in (plot_depth(found), plot_residual(found, paths), plot_state_paths(paths)):
        assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
        assert figure.axes[0].get_legend() is not None


def test_values_of_zero_can_be_drawn(found, paths, tmp_path) -> None:
    """On logarithmic axes they are drawn at the lower limit."""
    file = tmp_path / "residual.png"
    zero = Trajectories(**vars(paths) | {"residual": torch.zeros_like(paths.residual)})
    plot_residual(found, zero).savefig(file)
    with Image.open(file) as image:
        assert image.width > 500
