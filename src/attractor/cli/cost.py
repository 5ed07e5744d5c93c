"""``attractor cost``: what training a recipe costs, before it runs."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from attractor.cli.output import say


def cost(
    recipe: tyro.conf.Positional[str],
    /,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE ...")] = (),
    evaluations: int = 8,
    world_size: int = 1,
    strategy: Literal["ddp", "fsdp"] | None = None,
    measure: bool = True,
    out: Path | None = None,
) -> None:
    """Estimate what training a recipe costs (parameters, operations, memory, time), and measure it where possible.

    The estimate takes seconds, for any size and on any machine. The measurement makes a few real steps on random data.

    Args:
        recipe: The name of a recipe, such as language/140m or sudoku/6x6-trm; attractor recipes lists all.
        set: Settings to change, such as text.batch_size=128 train.accumulate=2; attractor show RECIPE lists all.
        evaluations: Expected evaluations per solve of a language model, within the recipe's limits. The log of a run reports the
            real number. Looped models and puzzle models have their own numbers.
        world_size: Number of processes, each with one device, that share every batch.
        strategy: How the processes share the model; the recipe's train.parallel by default.
        measure: Whether to make a few real steps on this machine within about a minute, with a smaller batch if necessary.
        out: A JSON file to write the figures to.
    """
    from attractor import recipes
    from attractor.experiment.cost import cost as run
    from attractor.experiment.environment import environment
    from attractor.files import require_output_file, write_json

    if out is not None:
        require_output_file(out)
    # cost refuses recipes without sizes by their names
    settings = recipe if recipe in recipes.FROM_CHECKPOINT else recipes.override(recipes.get(recipe), set)
    estimate = run(settings, evaluations=evaluations, world_size=world_size, strategy=strategy, measure=measure)
    say(*str(estimate).splitlines())
    if out is not None:
        write_json(out, {"recipe": recipe, "set": set, "environment": environment(), **estimate.to_dict()})
