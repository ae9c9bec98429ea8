"""Numbers as a reader sees them, in sentences and on axes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from knorm_core.results.families import FAMILIES


def number(value: object) -> str:
    """Four significant digits at least, whole numbers whole, thousands apart; other things as text.

    >>> number(37.833014), number(3068), number(0.000123456), number(None), number(float("inf"))
    ('37.83', '3,068', '0.0001235', '–', '∞')
    """
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "not a number" if value != value else "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif abs(value) >= 1000:
        text = f"{value:,.1f}"
    elif abs(value) >= 1e-4:
        text = f"{value:.4g}"
    else:
        text = f"{value:.3e}"
    return text.replace("-", "−")


_MODELS = {
    "SmolLM2-135M": "SmolLM2-135M-Instruct: tuned to follow instructions, and de-quantised from Q4_1",
    "Gemma 3 270M": "Gemma 3 270M: a base model, de-quantised from Q4_K_M, of which 3 of 18 layers are compressed",
}


def about(model: str, text_set: str) -> str:
    """What a conclusion from a family of the ledger or the embedded texts has to be read with; empty for others.

    >>> about("smollm2-135m", "wikitext-short")
    ' The model is SmolLM2-135M-Instruct: tuned to follow instructions, and de-quantised from Q4_1.'
    >>> about("another", "pg19"), about("another", "pg19-windows")
    ('', ' These windows are of one book: their intervals speak of it alone.')
    """
    sentences = [f"The model is {_MODELS[FAMILIES[model]]}."] if model in FAMILIES else []
    if text_set.startswith("embedded"):
        sentences.append(
            "These texts were written for this project and are harder to predict than human ones: they pin "
            "regressions, and conclusions about the method are drawn from human texts."
        )
    if text_set == "pg19-windows":
        sentences.append("These windows are of one book: their intervals speak of it alone.")
    return "".join(f" {sentence}" for sentence in sentences)


def keep(ratio: float) -> str:
    """A keep ratio as the user wrote it.

    >>> keep(1.0), keep(0.55)
    ('1.0', '0.55')
    """
    return str(float(ratio))


def listed(items: Iterable[object]) -> str:
    """
    >>> listed([0.9, 0.5, 0.1]), listed(["a"]), listed([])
    ('0.9, 0.5 and 0.1', 'a', 'none')
    """
    words = [str(item) for item in items]
    if len(words) < 2:
        return words[0] if words else "none"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "test"), counted(3068, "token")
    ('1 test', '3,068 tokens')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def lasted(seconds: float) -> str:
    """
    >>> lasted(4.26), lasted(785), lasted(7300)
    ('4.3 s', '13 min 5 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if round(seconds) < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"
