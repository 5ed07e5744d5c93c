"""``attractor generate``: continue a prompt."""

import sys
from typing import Any

from attractor.cli.output import describe_generation, make_streamer


def generate(
    checkpoint: str,
    /,
    prompt: str,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 0.95,
    num_samples: int = 1,
    seed: int = 0,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
) -> None:
    """Continue a prompt and print the tokens one by one.

    Args:
        checkpoint: The folder of a checkpoint, or of a run, whose newest checkpoint is taken; or a name on the hub.
        prompt: The text to continue; "-" reads standard input.
        max_new_tokens: The largest number of tokens to add. The model's context is another limit.
        temperature: 0 always takes the most probable token; higher values are more varied.
        top_k: Choose among this number of the most probable tokens; 0 means all.
        top_p: Choose among the most probable tokens that have this probability in total.
        num_samples: How many continuations to print.
        seed: The seed of the first continuation; each further one has the next seed.
        depth: Evaluations per token, instead of a tolerance.
        tolerance: The relative residual at which a token has converged, instead of the model's.
        max_evaluations: The largest number of evaluations, instead of the model's.
    """
    from attractor.data.text.documents import decode
    from attractor.errors import ConfigError
    from attractor.experiment.generation import describe_budget
    from attractor.experiment.generation import generate as run
    from attractor.experiment.loading import load_language_model, local_folder

    if num_samples < 1:
        raise ConfigError(f"num_samples={num_samples}: give a whole number from 1 up.")
    loaded = load_language_model(local_folder(checkpoint))
    text = decode(sys.stdin.buffer.read()) if prompt == "-" else prompt
    streamer = make_streamer(loaded.tokenizer)
    budget: Any = {"depth": depth, "tolerance": tolerance, "max_evaluations": max_evaluations}
    for sample in range(num_samples):
        result = run(
            loaded.model,
            loaded.tokenizer,
            text,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed + sample,
            **budget,
            streamer=streamer,
        )
        print(f"{describe_generation(result)}; {describe_budget(loaded.model, **budget)}", file=sys.stderr)
