"""``attractor data arc``: write a folder of ARC-AGI's tasks."""

from pathlib import Path

from attractor.cli.options import checked
from attractor.cli.puzzles import print_written


@checked
def arc(
    folder: Path,
    /,
    out: Path,
    num_augmentations: int = 100,
    parts: tuple[str, ...] = (),
    names: Path | None = None,
    seed: int = 0,
) -> None:
    """Write a folder of ARC-AGI's tasks, each with symmetric copies that have names of their own.

    Args:
        folder: A folder with training/*.json and evaluation/*.json, as ARC-AGI-1 and ARC-AGI-2 are published, or with
            Kaggle's *_challenges.json and *_solutions.json. Test pairs of the evaluation are test puzzles; everything
            else is trained.
        out: The folder to write; it must not exist.
        num_augmentations: Copies of each task: turned, reflected, with other colours. Published models have 1000.
        parts: The parts of the folder to read, by default all: training, training2, concept, evaluation and evaluation2 of
            TRM's data. Its published ARC-1 has training, evaluation and concept.
        names: The puzzle names of a published TRM (identifiers.json), in place of new copies.
        seed: Seed of the copies.
    """
    options = locals()  # every option by its name
    from attractor.experiment.prepare import prepare_arc

    print_written(prepare_arc(options.pop("folder"), **options, progress=True))
