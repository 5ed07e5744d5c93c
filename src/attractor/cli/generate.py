"""``attractor generate``: a language model goes on from a prompt, word by word."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TextStreamer

from attractor.errors import ConfigError
from attractor.evaluation import encode, known_budget, max_length
from attractor.experiment.loading import load_language_model
from attractor.models.language import AttractorForCausalLM


def generate(
    checkpoint: Path,
    /,
    prompt: str,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 0.95,
    num: int = 1,
    seed: int = 0,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    num_draft: int | None = None,
    draft_depth: int = 1,
) -> None:
    """Continue a prompt, streaming to the terminal, until the text ends or enough is said.

    Args:
        checkpoint: A checkpoint's folder, or a run's folder, whose newest is taken.
        prompt: The text to go on from; "-" reads standard input.
        max_new_tokens: The most tokens to add; the model's context bounds them too.
        temperature: 0 always takes the likeliest token; higher is more varied.
        top_k: Choose among so many of the likeliest tokens; 0: all.
        top_p: Choose among the likeliest tokens that hold this much probability.
        num: How many continuations, one after the other.
        seed: Of the choices.
        depth: Evaluations of the attractor per token; by default as many as the tolerance needs.
        tolerance: Relative residual at which a token is at rest, instead of the model's.
        max_evaluations: The most evaluations, instead of the model's.
        num_draft: Draft so many tokens at a time and let one solve verify them; the text stays the same.
        draft_depth: Evaluations of a draft, 0 or 1.
    """
    for name, value, least in (("max-new-tokens", max_new_tokens, 1), ("top-k", top_k, 0), ("num", num, 1)):
        if value < least:
            raise ConfigError(f"--{name} {value}: give a whole number from {least} up.")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ConfigError(f"--temperature {temperature:g} --top-p {top_p:g}: give one from 0 up, and one in (0, 1].")
    model, tokenizer = load_language_model(checkpoint)
    console = Console(stderr=True)
    text = sys.stdin.read() if prompt == "-" else prompt
    ids = encode(tokenizer, text)[None].to(model.device)
    room = max_length(model) - ids.shape[1]
    if room < 1:
        raise ConfigError(f"the prompt has {ids.shape[1]} tokens and the model reads {max_length(model)}; shorten it.")
    choice: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        choice = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    budget = known_budget(model, {"depth": depth, "tolerance": tolerance, "max_evaluations": max_evaluations})
    drafts = {} if num_draft is None else {"num_draft": num_draft, "draft_depth": draft_depth}
    if drafts and not isinstance(model, AttractorForCausalLM):
        raise ConfigError("--num-draft: this model has no proposal to draft from; leave it out.")
    torch.manual_seed(seed)
    for _ in range(num):
        begun = time.perf_counter()
        streamer: Any = TextStreamer(tokenizer, skip_special_tokens=True)
        generate: Any = model.generate
        out = generate(
            ids,
            max_new_tokens=min(max_new_tokens, room),
            streamer=streamer,
            pad_token_id=tokenizer.eos_token_id,
            **choice,
            **budget,
            **drafts,
        )
        added = out.shape[1] - ids.shape[1]
        full = " (the model's context is full)" if added == room < max_new_tokens else ""
        seconds = time.perf_counter() - begun
        console.print(f"[dim]{added} tokens in {seconds:.1f} s{full}[/dim]", highlight=False)
