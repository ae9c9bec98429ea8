"""A token-by-token evaluation in float32 that shares nothing with `knorm_core`: it plants what is traced back."""

from __future__ import annotations

import copy
import itertools
import math

import torch
from transformers import DynamicCache

COLUMNS, RATIOS, EARLY_RATIOS = ("Wikitext", "PG-19"), (1.0, 0.9, 0.5, 0.1), (0.9, 0.8, 0.7, 0.5)
MIXTURES = {(3, 2): (0.95, 0.85, 0.75, 0.6, 0.4, 0.3), (2, 2): (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)}


def threshold(length, prune_after):
    """Where phase 1 ends in a text of ``length`` tokens."""
    return max(32, min(prune_after, max(length - 50, length // 2)))


def shrink(cache, keep, start, skip):
    """Drop the keys of highest norm in every layer that holds ``start`` keys."""
    for index, layer in enumerate(cache.layers):
        length = layer.keys.shape[2]
        if length < start or index in skip:
            continue
        count = math.ceil(round(keep * length, 9))
        order = layer.keys.norm(dim=-1).argsort(dim=-1)[..., :count].sort(dim=-1).values
        rows = order[..., None].expand(-1, -1, -1, layer.keys.shape[3])
        layer.keys, layer.values = layer.keys.gather(2, rows), layer.values.gather(2, rows)


class Replay:
    """A text in a model, both as the report's scripts would have them; phase 1 is fed once."""

    def __init__(self, model, ids):
        self.model, self.ids = model, torch.as_tensor(ids)
        self.phase_1 = {}

    @torch.inference_mode()
    def plain(self):
        """Losses of every token but the first, from one plain forward."""
        logits = self.model(self.ids[None, :-1]).logits[0]
        return torch.nn.functional.cross_entropy(logits, self.ids[1:], reduction="none").double()

    @torch.inference_mode()
    def losses(self, keep, start, *, skip=(), true_positions=False, feed_first=False):
        """Losses of the tokens after ``start``, compressed from ``start`` keys on."""
        if start not in self.phase_1:
            self.phase_1[start] = DynamicCache()
            self.model(self.ids[None, :start], past_key_values=self.phase_1[start])
        cache, losses = copy.deepcopy(self.phase_1[start]), []
        for step in range(start, len(self.ids) - 1):
            if not feed_first:
                shrink(cache, keep, start, skip)
            position = step if true_positions else cache.layers[0].keys.shape[2]
            logits = self.model(
                self.ids[None, step : step + 1], past_key_values=cache, position_ids=torch.tensor([[position]])
            ).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits, self.ids[step + 1 : step + 2]).double())
            if feed_first:
                shrink(cache, keep, start, skip)
        return torch.stack(losses)


def mean_perplexity(losses):
    """The arithmetic mean of texts' perplexities."""
    return sum(math.exp(loss.mean()) for loss in losses) / len(losses)


class Planted:
    """The figures that the separate loop prints for a protocol."""

    def __init__(self, model, tokenizer, rows, books):
        self.model, self.tokenizer, self.sources = model, tokenizer, {"Wikitext": rows, "PG-19": books}
        self.replays, self.computed = {}, {}

    def replay(self, text, tokens):
        ids = tuple(self.tokenizer(text, add_special_tokens=False).input_ids[:tokens])
        return self.replays.setdefault(ids, Replay(self.model, ids))

    def losses(self, text, tokens, *arguments, **options):
        replay = self.replay(text, tokens)
        key = (id(replay), arguments, tuple(options.items()))
        if key not in self.computed:
            start = arguments[1] if len(arguments) > 1 else threshold(len(replay.ids), 256)
            self.computed[key] = replay.losses(arguments[0], start, **options)
        return self.computed[key]

    def texts(self, protocol, column):
        if column == "PG-19":
            return [book[: protocol.book_characters] for book in self.sources[column][: protocol.books]]
        return [row[: protocol.row_characters] for row in self.sources[column] if len(row.strip()) >= 50][
            : protocol.rows
        ]

    def cell(self, protocol, column, ratio):
        texts = self.texts(protocol, column)
        if ratio == 1 and protocol.baseline == "whole":
            return mean_perplexity([self.replay(text, protocol.baseline_tokens).plain() for text in texts])
        if ratio == 1:
            plain = [self.replay(text, protocol.max_eval_tokens).plain() for text in texts]
            return mean_perplexity([losses[threshold(len(losses) + 1, 256) :] for losses in plain])
        options = {
            "skip": protocol.skip_layers,
            "true_positions": protocol.positions == "absolute",
            "feed_first": protocol.first_eviction_after == 1,
        }
        return mean_perplexity([self.losses(text, protocol.max_eval_tokens, ratio, **options) for text in texts])

    def early(self, protocol, texts, ratio):
        """Compressed at 32 of 256 tokens, layer 0 left alone, scored from token 1; keep 1 is the whole text."""
        if ratio == 1:
            return mean_perplexity([self.replay(text, protocol.baseline_tokens).plain() for text in texts])
        every = []
        for text in texts:
            before = self.replay(text, 256).plain()[:32]
            every.append(torch.cat([before, self.losses(text, 256, ratio, 32, skip=(0,))]))
        return mean_perplexity(every)

    def mixture(self, protocol, rows, books):
        return self.texts(protocol, "Wikitext")[:rows] + self.texts(protocol, "PG-19")[:books]

    def table(self, protocol):
        return {cell: round(self.cell(protocol, *cell), 2) for cell in itertools.product(COLUMNS, RATIOS)}

    def figures(self, known, long_books):
        """The anchors of one protocol, as keyword arguments of `Figures`; the final table of no one yet."""
        whole = {
            column: [math.exp(self.replay(text, known.baseline_tokens).plain().mean()) for text in texts]
            for column in COLUMNS
            if (texts := self.texts(known, column))
        }
        long = [self.replay(text, known.max_eval_tokens).plain() for text in long_books]
        every = [ppl for column in whole.values() for ppl in column]
        phase_2 = [losses[threshold(len(losses) + 1, 256) :] for losses in long]
        return {
            "final": {},
            "rows": tuple(round(ppl, 2) for ppl in whole["Wikitext"][:2]),
            "columns": {column: round(sum(ppls) / len(ppls), 2) for column, ppls in whole.items()},
            "mean": round(sum(every) / len(every), 2),
            "early": {
                (column, ratio): round(self.early(known, self.texts(known, column), ratio), 2)
                for column, ratio in itertools.product(COLUMNS, EARLY_RATIOS)
            },
            "mixtures": {
                (rows, books): {
                    ratio: round(self.early(known, self.mixture(known, rows, books), ratio), 2) for ratio in ratios
                }
                for (rows, books), ratios in MIXTURES.items()
            },
            "long_books": round(mean_perplexity(phase_2), 2) if phase_2 else None,
        }
