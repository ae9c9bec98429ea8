"""Which token is each survivor? Answered from the values, which name their place (see `CacheCase`)."""

from __future__ import annotations

from typing import Any

import torch

from knorm_core.cache import Pair
from knorm_core.contract.cases import rows_of
from knorm_core.contract.findings import Broken, brief


def origins(before: Pair, after: Pair, layer: int = 0) -> torch.Tensor:
    """The index in ``before`` of every survivor in ``after``: (batch, kv_heads, kept), int64.

    Raises:
        Broken: a value that is none of its head's, or a key that is not the one of its value.
    """
    same_shape(before, after, layer)
    match = (after[1].unsqueeze(3) == before[1].unsqueeze(2)).all(dim=-1)  # (batch, heads, kept, length)
    if not bool(match.any(dim=-1).all()):
        row, head, slot = (~match.any(dim=-1)).nonzero()[0].tolist()
        raise Broken(
            expected=f"values of this head, of tokens 0 to {before[0].shape[2] - 1}",
            got=f"survivor {slot} has the value {brief(after[1][row, head, slot].tolist())}, which is none of them",
            layer=layer,
            row=row,
            head=head,
        )
    index = match.int().argmax(dim=-1)
    keys, _ = rows_of(before, index)
    if not torch.equal(keys, after[0]):
        row, head, slot = (keys != after[0]).any(dim=-1).nonzero()[0].tolist()
        raise Broken(
            expected=f"the key of the same token as the value, {brief(keys[row, head, slot].tolist())}",
            got=f"{brief(after[0][row, head, slot].tolist())}",
            layer=layer,
            row=row,
            head=head,
            token=int(index[row, head, slot]),
            survivor=slot,
        )
    return index


def same_shape(before: Pair, after: Pair, layer: int) -> None:
    """Everything but the length is as it was, and keys and values are equally many."""
    for name, old, new in zip(("keys", "values"), before, after, strict=True):
        if old.shape[:2] != new.shape[:2] or old.shape[3] != new.shape[3]:
            raise Broken(
                expected=f"{name} of shape ({old.shape[0]}, {old.shape[1]}, kept, {old.shape[3]})",
                got=tuple(new.shape),
                layer=layer,
            )
    if after[0].shape[2] != after[1].shape[2]:
        raise Broken(expected="as many values as keys", got=f"{after[0].shape[2]} keys, {after[1].shape[2]} values")


def same_pairs(expected: list[Pair], got: list[Pair], what: str, before: list[Pair] | None = None) -> None:
    """Two caches are equal bit for bit, dtype and shape included.

    Args:
        before: the cache that both are survivors of; where given, tokens are named instead of numbers shown.
    """
    for layer, (old, new) in enumerate(zip(expected, got, strict=True)):
        for name, left, right in zip(("keys", "values"), old, new, strict=True):
            if left.shape != right.shape or left.dtype != right.dtype:
                if before is not None and left.dtype == right.dtype:
                    _same_tokens(before[layer], old, new, what, layer)
                raise Broken(
                    expected=f"{name} {what}: {tuple(left.shape)}, {left.dtype}",
                    got=f"{tuple(right.shape)}, {right.dtype}",
                    layer=layer,
                )
            if not torch.equal(left, right):
                if before is not None:
                    _same_tokens(before[layer], old, new, what, layer)
                row, head, slot = (left != right).any(dim=-1).nonzero()[0].tolist()
                raise Broken(
                    expected=f"{name} {what}: {brief(left[row, head, slot].tolist())}",
                    got=right[row, head, slot].tolist(),
                    layer=layer,
                    row=row,
                    head=head,
                    index=slot,
                )


def _same_tokens(before: Pair, expected: Pair, got: Pair, what: str, layer: int) -> None:
    """Raise with the names of the tokens, where the difference is one of which survive or in which order."""
    try:
        left, right = origins(before, expected, layer), origins(before, got, layer)
    except Broken:
        return
    for row in range(left.shape[0]):
        for head in range(left.shape[1]):
            wanted, came = left[row, head].tolist(), right[row, head].tolist()
            if wanted != came:
                raise Broken(
                    expected=f"tokens {what}: {wanted}",
                    got=f"{came}",
                    picture=picture(before[0].shape[2], wanted, came),
                    layer=layer,
                    row=row,
                    head=head,
                )


def picture(length: int, expected: list[int], got: list[int]) -> str:
    """Tokens fed, expected and got in three lines, each token in its column; out of order, as they lie.

    >>> print(picture(5, [1, 2], [2, 1]))
    fed       0 1 2 3 4
    expected  . 1 2 . .
    got       2 1  (in this order)
    """
    width = len(str(length - 1))

    def line(tokens: list[int]) -> str:
        if tokens != sorted(set(tokens)):
            return " ".join(f"{token:>{width}}" for token in tokens) + "  (in this order)"
        return " ".join(f"{token if token in tokens else '.':>{width}}" for token in range(length))

    lines = {"fed": list(range(length)), "expected": expected, "got": got}
    return "\n".join(f"{name:<10}{line(tokens)}" for name, tokens in lines.items())


def same_survivors(expected: torch.Tensor, got: torch.Tensor, length: int, layer: int = 0, **where: Any) -> None:
    """Two selections (batch, kv_heads, kept) of ``length`` tokens are the same sets; order is another promise."""
    if expected.shape != got.shape:
        raise Broken(expected=f"{expected.shape[-1]} survivors", got=f"{got.shape[-1]} survivors", layer=layer, **where)
    expected, got = expected.sort(dim=-1).values, got.sort(dim=-1).values
    if not torch.equal(expected, got):
        row, head = (expected != got).any(dim=-1).nonzero()[0].tolist()
        details: dict[str, Any] = {
            name: value[row, head].tolist() if isinstance(value, torch.Tensor) else value
            for name, value in where.items()
        }
        raise Broken(
            expected=f"tokens {expected[row, head].tolist()} to stay",
            got=f"tokens {got[row, head].tolist()}",
            picture=picture(length, expected[row, head].tolist(), got[row, head].tolist()),
            layer=layer,
            row=row,
            head=head,
            **details,
        )
