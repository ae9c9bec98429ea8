"""What every compressor can be given, unless it says otherwise. Each limit that is met is one claim."""

from __future__ import annotations

from knorm_core.contract import limits
from knorm_core.contract.adapters import Compressor
from knorm_core.contract.checks import check

GIVEN = "what it can be given"


@check(GIVEN)
def takes_prune_after_and_skip_layers(compressor: Compressor) -> None:
    """The arguments prune_after and skip_layers are taken by name.

    Guards against calls that end in a TypeError at the first text; what has no such argument claims so, and
    is called without.
    """
    limits.arguments(compressor)


@check(GIVEN)
def returns_a_cache(compressor: Compressor) -> None:
    """A cache comes back, with the layers, rows and KV heads that went in, and as many values as keys.

    Guards against KV heads expanded to query heads before they are cached, which multiplies the memory that
    compression was to save, and against results that the next forward pass cannot take.
    """
    limits.any_cache(compressor)


@check(GIVEN)
def keeps_as_few_as_asked(compressor: Compressor) -> None:
    """A keep ratio may leave a single key.

    Guards against windows and sinks that are kept whatever the ratio, so that small ratios crash or are not
    what the table says.
    """
    limits.few_survivors(compressor)


@check(GIVEN)
def takes_short_layers(compressor: Compressor) -> None:
    """A layer that holds a single key can be given.

    Guards against squeeze() without a dimension, which takes the axis of tokens for a spare one as soon as it
    has length 1.
    """
    limits.short_layers(compressor)


@check(GIVEN)
def takes_several_rows(compressor: Compressor) -> None:
    """A batch of two rows can be given.

    Guards against view(1, …) and squeeze(0), which fail, or mix texts, as soon as texts are evaluated together.
    """
    limits.several_rows(compressor)


@check(GIVEN)
def takes_a_single_head(compressor: Compressor) -> None:
    """A layer of a single KV head can be given, as multi-query attention has it.

    Guards against squeeze() on the axis of heads.
    """
    limits.single_head(compressor)


@check(GIVEN)
def takes_every_float_dtype(compressor: Compressor) -> None:
    """Keys of float32, float64, bfloat16 and float16 can be given.

    Guards against buffers and masks made in one dtype, which meet keys of another at the first model that is
    loaded differently.
    """
    limits.every_dtype(compressor)


@check(GIVEN)
def takes_layers_of_any_length(compressor: Compressor) -> None:
    """A cache of several layers can be given, and their lengths may differ.

    Guards against tensors stacked over layers, and against one index used for all of them.
    """
    limits.several_layers(compressor)
