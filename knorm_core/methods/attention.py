"""Causal attention over keys that die: the kernel of the one-pass evaluation.

Every key has a birth (its own index) and a death (the step at which it is evicted), and query i sees
key j exactly if ``j <= i < death[j]``. The queries are taken in blocks: per block and KV head the keys
that are still alive are gathered, the block's own are appended, and a mask settles who was born or
died within the block. Attention therefore never spans more than the cache plus one block, whatever the
schedule, and no mask over (query, key) pairs of the whole text is ever made.

A sliding window is the same thing with ``death[j] = j + window``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch.nn.functional import scaled_dot_product_attention

from knorm_core.cache import take

BLOCK = 64  # queries at a time; 64 to 128 take the same time within noise on a CPU, 256 takes a quarter more
NEVER = torch.iinfo(torch.int64).max


def mortal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    deaths: torch.Tensor | None,
    *,
    immortal_until: int = 0,
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attend causally, each query only to the keys that are alive when it is fed.

    Args:
        query: (batch, heads, queries, head_dim), for the last ``queries`` of the ``length`` tokens.
        key, value: (batch, kv_heads, length, head_dim); heads is a multiple of kv_heads.
        deaths: (batch, kv_heads, length), int64: the index of the first query that no longer sees the
            key. Each query must see equally many keys in every head. None: no key ever dies.
        immortal_until: no key dies before this index, so that many first tokens attend plainly.
        scale: factor on the scores; default ``head_dim ** -0.5``.
        softcap: tanh soft-capping of the scores, as Gemma 2 has it.

    Returns:
        (batch, heads, queries, head_dim), in the dtype of ``value``.
    """
    batch, heads, queries, _ = query.shape
    length = key.shape[2]
    plain = 0  # first queries that attend plainly, which is faster
    if queries == length and softcap is None:
        plain = length if deaths is None else min(immortal_until, length)
    if plain == length:
        return _plain_attention(query, key, value, scale)
    # Laid out as transformers wants it back, (batch, queries, heads, head_dim), so that nobody copies it again.
    out = value.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)
    if plain:
        early = slice(plain)
        out[:, :, early] = _plain_attention(query[:, :, early], key[:, :, early], value[:, :, early], scale)
    at = plain
    for block in _blocks(query[:, :, plain:], key, value, deaths, scale, softcap):
        out[:, :, at : at + block.shape[2]] = block
        at += block.shape[2]
    return out


def moving_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    deaths: torch.Tensor,
    steps: Sequence[int],
    move: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """As `mortal_attention`, with survivors that change at every eviction; a segment at a time.

    Args:
        steps: when keys die, ascending; between two of them nothing changes.
        move: survivors (batch, kv_heads, kept, head_dim) and the indices they were born with
            (batch, kv_heads, kept) to what they are from this eviction to the next.
    """
    length = key.shape[2]
    start = length - query.shape[2]
    parts = []
    if start < steps[0]:
        plain = slice(None, steps[0])
        queries = query[:, :, : steps[0] - start]
        parts.append(
            mortal_attention(queries, key[:, :, plain], value[:, :, plain], None, scale=scale, softcap=softcap)
        )
    for first, last in pairwise([*steps, length]):
        if last <= start:
            continue
        if first < start:
            raise ValueError(f"a pass begins at an eviction or before the first, not at {start} of {list(steps)}")
        alive = (deaths[..., :first] > first).nonzero()[:, -1].view(*key.shape[:2], -1)
        keys = torch.cat([move(take(key, alive), alive), key[:, :, first:last]], dim=2)
        values = torch.cat([take(value, alive), value[:, :, first:last]], dim=2)
        queries = query[:, :, first - start : last - start]
        parts.append(mortal_attention(queries, keys, values, None, scale=scale, softcap=softcap))
    return torch.cat(parts, dim=2)


def _plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)


def _blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    deaths: torch.Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> Iterator[torch.Tensor]:
    """The last queries, a block at a time: each against the keys alive at its first and the block's own."""
    batch, heads, queries, width = query.shape
    kv_heads, length = key.shape[1:3]
    # Every KV head is a row with the query heads that share it: neither keys nor masks are repeated for them.
    rows = batch * kv_heads
    query = query.reshape(rows, heads // kv_heads, queries, width)
    key, value = key.reshape(rows, length, -1), value.reshape(rows, length, -1)
    if deaths is not None:
        deaths = deaths.reshape(rows, length)
        # One index into all rows: copying whole keys is several times faster than gathering element by element.
        row = torch.arange(rows, device=key.device).unsqueeze(-1) * length
        all_keys, all_values = key.reshape(rows * length, -1), value.reshape(rows * length, -1)
    for first in range(length - queries, length, BLOCK):
        last = min(first + BLOCK, length)
        steps = torch.arange(first, last, device=key.device).unsqueeze(-1)
        if deaths is None:
            keys, values = key[:, :last], value[:, :last]
            mask = (torch.arange(last, device=key.device) <= steps).expand(1, -1, -1)
        else:
            alive = (deaths[:, :last] > first).nonzero()[:, -1].view(rows, -1)
            chosen = (alive + row).flatten()
            keys, values = (every.index_select(0, chosen).view(*alive.shape, -1) for every in (all_keys, all_values))
            mask = (alive.unsqueeze(-2) <= steps) & (deaths.gather(-1, alive).unsqueeze(-2) > steps)
        asked = query[:, :, first - length + queries : last - length + queries]
        out = _masked_attention(asked, keys.unsqueeze(1), values.unsqueeze(1), mask.unsqueeze(1), scale, softcap)
        yield out.reshape(batch, heads, last - first, -1)


def _masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Queries (rows, groups, …) to keys and values (rows, 1, …) where the mask (1 or rows, 1, queries, keys) allows."""
    if softcap is None:
        key, value = (every.expand(-1, query.shape[1], -1, -1) for every in (key, value))
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ value
