"""The objective of language models: which rows it serves, what it counts, and that small batches add up to large ones."""

from pathlib import Path

import torch
from torch import Tensor

from attractor.models.language import AttractorConfig, AttractorForCausalLM
from attractor.optim import OptimizerConfig
from attractor.train import NextToken, NextTokenConfig, TrainConfig, train


class Drawn:
    """Row ``n`` is drawn with seed ``n``."""

    def __init__(self) -> None:
        self.served: list[int] = []

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor]:
        self.served += range(first, first + num)
        rows = [torch.randint(50, (16,), generator=torch.Generator().manual_seed(n)) for n in range(first, first + num)]
        return torch.stack(rows), torch.arange(16).expand(num, 16)


def run(out: Path, batch_size: int, accumulate: int, **settings) -> tuple[AttractorForCausalLM, Drawn]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    model = AttractorForCausalLM(AttractorConfig(**sizes, num_hidden_layers=2, tolerance=1e-6))
    rows = Drawn()
    config = TrainConfig(
        num_steps=4, accumulate=accumulate, optimizer=OptimizerConfig(lr=1e-3, eps=1e-4), warmup=0, ema=0, **settings
    )
    objective = NextToken(rows, NextTokenConfig(batch_size=batch_size, length=16), peak_flops=1e9)
    return train(model, objective, config, out=out, describe={}), rows


def test_accumulated_batches_are_one_large_batch(tmp_path) -> None:
    """The same rows and, to rounding, the same weights."""
    whole, rows = run(tmp_path / "a", 8, 1)
    parts, again = run(tmp_path / "b", 2, 4)
    assert rows.served == again.served == list(range(32))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_training_in_bf16_follows_float32(tmp_path) -> None:
    """Weights stay in float32, and the losses of both agree to a per cent."""
    wide, _ = run(tmp_path / "a", 8, 1)
    narrow, _ = run(tmp_path / "b", 8, 1, precision="bf16")
    assert {p.dtype for p in narrow.parameters()} == {torch.float32}
    ids = Drawn().batch(100, 8)[0]
    with torch.no_grad():
        losses = [float(m(ids, labels=ids).loss) for m in (wide, narrow)]
    assert abs(losses[0] / losses[1] - 1) < 0.01
    assert losses[0] != losses[1], "nothing was computed in bf16"


def test_weight_decay_fades_with_the_run(tmp_path) -> None:
    """A weight without a gradient shrinks by a decay that falls linearly to its final share."""
    model = torch.nn.Linear(2, 2, bias=False)

    class Nothing:
        def step(self, model):
            return 0 * model.weight.sum(), {}

        def inspect(self, model):
            return {}

        def state_dict(self):
            return {}

    before, rates = model.weight.detach().clone(), (1, 0.75, 0.5, 0.25)
    config = TrainConfig(
        num_steps=4, optimizer=OptimizerConfig(lr=0.1, weight_decay=1.0, final_decay=0.0), warmup=0, decay=1e-9, ema=0
    )
    train(model, Nothing(), config, out=tmp_path, describe={})
    shrunk = torch.tensor([1 - 0.1 * rate for rate in rates]).prod()
    assert torch.allclose(model.weight, before * shrunk, rtol=1e-5)
