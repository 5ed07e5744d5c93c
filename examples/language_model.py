"""Train a small language model on a folder of text and plot its loss by depth.

    python examples/language_model.py --texts FOLDER --num-steps 300

Without ``--texts`` it trains on arithmetic sentences that it makes itself.
"""

import argparse
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

import attractor
from attractor import recipes
from attractor.experiment.prepare import prepare_text

SMALL = {
    "model.hidden_size": 64,
    "model.intermediate_size": 128,
    "model.num_attention_heads": 2,
    "model.max_position_embeddings": 64,
    "text.length": 64,
    "text.batch_size": 16,
}


def write_sums(folder: Path) -> Path:
    """Write documents such as "12 plus 7 is 19." and return the folder."""
    folder.mkdir()
    for document in range(100):
        pairs = [(document * 7 % 50, second) for second in range(40)]
        text = " ".join(f"{first} plus {second} is {first + second}." for first, second in pairs)
        (folder / f"{document}.txt").write_text(text)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--num-steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("loss_by_depth.png"))
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = options.texts or write_sums(folder / "texts")
        prepare_text([texts], folder / "tokens", vocab_size=300, val_fraction=0.1)
        recipe = recipes.override(recipes.get("language/tiny"), {**SMALL, "train.num_steps": options.num_steps})
        trained = attractor.train(recipe, folder / "tokens", folder / "run", progress=False)
        print(trained.generate("12 plus 7", max_new_tokens=8, temperature=0))

        bits = {}
        for depth in (0, 1, 2, 4, None):  # None: every token to its tolerance
            figures = attractor.evaluate(trained, folder / "tokens", depth=depth, limit=4)
            bits["equilibrium" if depth is None else str(depth)] = figures["results"]["text"]["bits_per_byte"]
    print({depth: round(value, 3) for depth, value in bits.items()})

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(bits), list(bits.values()), marker="o")
    axes.set(xlabel="depth (evaluations)", ylabel="bits per byte of held-out text")
    figure.savefig(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
