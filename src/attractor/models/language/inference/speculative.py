"""Self-speculative decoding: the proposal drafts a few tokens, and one solve over all of them verifies the drafts.

Drafts come from the backbone alone (``draft_depth=0``) or from one evaluation (``1``). The solve starts from the
proposals that drafting has computed, so that verification needs no backbone pass. Drafts are accepted so that the text,
or the distribution of sampled text, is that of decoding at the equilibrium token by token (Leviathan et al.,
arXiv:2211.17192).
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from attractor.errors import ConfigError


def generate_with_drafts(
    model: Any,
    input_ids: Tensor,
    *,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    num_draft: int,
    draft_depth: int,
    streamer: Any = None,
    **inputs: Any,
) -> Tensor:
    """Continue ``input_ids`` (1, T): a decoding method for ``generate``, see :meth:`AttractorForCausalLM.generate`."""
    budget = {name: inputs.get(name) for name in ("tolerance", "max_evaluations")}
    _require_draftable(model, input_ids, generation_config, num_draft, draft_depth, inputs, budget)
    stop = model.model.stop_rule(**budget) or model.model.default_stop_rule()
    cache, sampling, ids = DynamicCache(), generation_config.do_sample, input_ids
    first = model(ids, cache=cache, logits_to_keep=1, **budget).logits[:, -1]
    new = torch.multinomial(_distribution(logits_processor, ids, first, sampling), 1)
    attractor_slots = range(model.model.num_backbone_layers, model.config.num_hidden_layers)
    while True:
        for token in new.split(1, dim=1):
            ids = torch.cat([ids, token], dim=1)
            if streamer is not None:
                streamer.put(token[0].cpu())
            if bool(stopping_criteria(ids, None).all()):
                if streamer is not None:
                    streamer.end()
                return ids
        num = min(num_draft, generation_config.max_length - ids.shape[1])
        model.model.require_positions(ids.shape[1] - 1, num)  # the last token is not in the cache yet
        drafts, draft_probs, proposals = _draft(model, ids, cache, num, draft_depth, logits_processor, sampling)
        context = model.model.make_context(proposals, cache=cache, slots=attractor_slots, equilibrium=True)
        solved = model.model.solve(proposals, context, stop).value
        logits = model.lm_head(model.model.norm(solved))
        text = torch.cat([ids, drafts], dim=1)
        target_probs = [
            _distribution(logits_processor, text[:, : ids.shape[1] + i], logits[:, i], sampling) for i in range(num)
        ]
        new = accept_drafts(torch.cat(target_probs), torch.cat(draft_probs), drafts[0])[None]
        _crop(cache, num - new.shape[1])  # rejected drafts


def accept_drafts(target_probs: Tensor, draft_probs: Tensor, drafts: Tensor) -> Tensor:
    """Return the accepted of ``drafts`` (n,) and, after them, a token in place of the first rejected one.

    The tokens follow the distributions ``target_probs``; the drafts were drawn from ``draft_probs``, both (n, V).
    """
    target, draft = (probs.gather(1, drafts[:, None])[:, 0] for probs in (target_probs, draft_probs))
    is_accepted = torch.rand(len(drafts), device=drafts.device) * draft < target
    num = int(is_accepted.long().cumprod(dim=0).sum())
    if num == len(drafts):
        return drafts
    remaining = (target_probs[num] - draft_probs[num]).clamp_min(0)
    return torch.cat([drafts[:num], torch.multinomial(remaining, 1)])


def _draft(
    model: Any, ids: Tensor, cache: DynamicCache, num: int, depth: int, processor: Any, sampling: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return drafts (1, num), their distributions and proposals (1, num, D); fill the backbone's slots."""
    start, proposals, draft_probs = ids.shape[1], [], []
    slots = range(model.config.num_hidden_layers if depth else model.model.num_backbone_layers)
    for _ in range(num):
        x = model.model.embed_tokens(ids[:, -1:])
        context = model.model.make_context(x, cache=cache, slots=slots, equilibrium=True)
        proposal = model.model.run(x, context, 0, model.model.num_backbone_layers)
        y = model.model.update(proposal, context)(proposal) if depth else proposal
        distribution = _distribution(processor, ids, model.lm_head(model.model.norm(y))[:, -1], sampling)
        ids = torch.cat([ids, torch.multinomial(distribution, 1)], dim=1)
        proposals.append(proposal)
        draft_probs.append(distribution)
    if depth:  # the solve replaces the keys and values of the drafts in the attractor's slots
        _crop(cache, num, first=model.model.num_backbone_layers)
    return ids[:, start:], draft_probs, torch.cat(proposals, dim=1)


def _crop(cache: DynamicCache, num: int, first: int = 0) -> None:
    layers: Any = cache.layers[first:]
    for layer in layers:
        layer.crop(-num)


def _distribution(processor: Any, ids: Tensor, logits: Tensor, sampling: bool) -> Tensor:
    """Return the probabilities (1, V) of the next token; for greedy decoding, 1 for the most likely token."""
    scores = processor(ids, logits.float())
    if sampling:
        return scores.softmax(dim=-1)
    return torch.zeros_like(scores).scatter_(1, scores.argmax(dim=-1, keepdim=True), 1.0)


def _require_draftable(
    model: Any,
    ids: Tensor,
    config: Any,
    num_draft: int,
    draft_depth: int,
    inputs: dict[str, Any],
    budget: dict[str, float | None],
) -> None:
    """Refuse models and arguments that drafts do not support."""
    if type(num_draft) is not int or num_draft < 1 or draft_depth not in (0, 1):
        raise ConfigError(
            f"num_draft={num_draft}, draft_depth={draft_depth}: draft at least one token, at depth 0 or 1."
        )
    if not model.config.num_attractor_layers or model.config.start != "proposal":
        raise ConfigError("num_draft: only a model that solves from a proposal has drafts; leave out num_draft.")
    if inputs.get("depth") is not None or "depth" in model.budget(**budget):
        raise ConfigError(
            "num_draft: a solve verifies the drafts, and a fixed depth, given or stored, has none; give tolerance, or no "
            "num_draft."
        )
    mask = inputs.get("attention_mask")
    if len(ids) > 1 or config.num_beams > 1 or (mask is not None and not bool(mask.all())):
        raise ConfigError("num_draft: drafts are for one text at a time, without padding or beams.")
    if config.guidance_scale not in (None, 1) or config.return_dict_in_generate:
        raise ConfigError(
            "num_draft: drafts do not support guidance_scale and return_dict_in_generate; leave out num_draft."
        )
    if getattr(inputs.get("cache"), "_is_user_defined", False) or "inputs_embeds" in inputs:
        raise ConfigError("num_draft: drafts need token ids and their own cache; leave out num_draft.")
