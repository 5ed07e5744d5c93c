"""``attractor chat``: talk to a model in the terminal."""

import sys
from typing import Any

from attractor.cli.output import describe_generation, make_streamer

SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p")


def chat(
    checkpoint: str,
    /,
    system: str = "",
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 0.95,
    seed: int = 0,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
) -> None:
    """Talk to a model whose tokenizer has a chat template. Every line, from the terminal or a pipe, is a message.

    /exit or Ctrl-D ends the program, /clear starts a new conversation, Ctrl-C stops an answer.

    Args:
        checkpoint: The folder of a checkpoint, or of a run, whose newest checkpoint is taken; or a name on the hub.
        system: A system message at the start of the conversation.
        max_new_tokens: The largest number of tokens of an answer. The model's context is another limit.
        temperature: 0 always takes the most probable token; higher values are more varied.
        top_k: Choose among this number of the most probable tokens; 0 means all.
        top_p: Choose among the most probable tokens that have this probability in total.
        seed: The seed of the first answer; each further one has the next seed.
        depth: Evaluations per token, instead of a tolerance.
        tolerance: The relative residual at which a token has converged, instead of the model's.
        max_evaluations: The largest number of evaluations, instead of the model's.
    """
    from attractor.data.text import render
    from attractor.errors import AttractorError
    from attractor.experiment.generation import KeptCache, answer, describe_budget
    from attractor.experiment.loading import load_language_model, local_folder

    settings: dict[str, Any] = {name: value for name, value in locals().items() if name in SAMPLING}
    budget: Any = {"depth": depth, "tolerance": tolerance, "max_evaluations": max_evaluations}
    loaded = load_language_model(local_folder(checkpoint))
    render(loaded.tokenizer, [{"role": "user", "content": ""}], checkpoint)  # or the mistake would wait for a message
    begin = [{"role": "system", "content": system}] if system else []
    messages, kept, is_terminal = list(begin), KeptCache(), sys.stdin.isatty()
    print(f"Budget: {describe_budget(loaded.model, **budget)}.", file=sys.stderr)
    while (line := _read(is_terminal)) not in (None, "/exit"):
        if line == "/clear":
            messages = list(begin)
        if not line or line == "/clear":
            continue
        messages.append({"role": "user", "content": line})
        streamer = make_streamer(loaded.tokenizer, skip_prompt=True)
        try:
            more: Any = {"seed": seed, "streamer": streamer, "kept": kept, **budget, **settings}
            result = answer(loaded.model, loaded.tokenizer, messages, **more)
        except (AttractorError, KeyboardInterrupt) as error:
            if not is_terminal:
                raise
            messages.pop()
            print(f"\n({error or 'stopped'})", file=sys.stderr)
            continue
        messages.append({"role": "assistant", "content": result.text})
        seed += 1
        print(f"({describe_generation(result)})", file=sys.stderr)


def _read(is_terminal: bool) -> str | None:
    """Return the next line without spaces around it, or None at the end."""
    from attractor.data.text.documents import repair

    try:
        return repair(input("> " if is_terminal else "")).strip()
    except EOFError:
        return None
