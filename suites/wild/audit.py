"""The audit: what the contract finds in each implementation, as a table and as a page.

A finding is on the page only if the lines that it follows from were read: `Implementation.read` names them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from knorm_core.contract import Finding, check_compressor, check_evaluator
from knorm_core.contract.evaluators import LossFunction
from suites.wild.implementations import IMPLEMENTATIONS, Implementation

COMMAND = "python -m suites.wild DIR > docs/wild.md"

#: By check: what follows from such a finding, and whether it changes numbers.
FOLLOWS = {
    "returns_a_cache": (
        "KV heads are cached as query heads, each so many times over, and each copy keeps tokens of its own: the cache "
        "is that many times larger than its keep ratio says.",
        "in memory",
    ),
    "takes_short_layers": ("A cache of one token cannot be compressed.", "no"),
    "takes_several_rows": ("Texts go through one at a time. A single row is compressed as promised.", "no"),
    "takes_every_float_dtype": ("float64 models cannot be run; the mask is filled in float32.", "no"),
    "keeps_as_few_as_asked": (
        "A window or a sink always stays, in most with one key more; a smaller budget is refused.",
        "no",
    ),
    "senseless_ratio_is_refused": (
        "keep_ratio=50, meant as percent, keeps everything without a word.",
        "if asked",
    ),
    "keeps_the_declared_count": ("At some lengths one key more is kept than the decimal ratio says.", "slightly"),
    "keeps_temporal_order": (
        "Keys are cached with their rotation, so attention is the same; only what reads positions off the cache, or "
        "takes the last keys for the latest, is not.",
        "no",
    ),
    "values_may_be_wider_or_narrower": (
        "Where values are wider or narrower than keys, channels are lost or an exception is raised.",
        "in such models",
    ),
    "ratio_one_changes_nothing": ("The row of keep ratio 1 is reordered too; its losses agree up to rounding.", "no"),
    "input_is_left_alone": (
        "The tensors that were passed in are overwritten; a caller who goes on with them has another cache.",
        "if they are used again",
    ),
    "evicted_memory_is_freed": ("The slice keeps the whole cache alive until the next token copies it.", "no"),
    "equal_norms_keep_the_earlier": ("Which of two equal keys stays is left to the library.", "between machines"),
    "rounding_noise_decides_nothing": (
        "The last bit of the rotary tables decides which of two occurrences of a token stays: tables moved by up to "
        "3e-3 when it was perturbed.",
        "between machines",
    ),
    "low_precision_keys_are_scored_in_float32": (
        "Norms of a bfloat16 model mostly tie, and the choice falls to the sort.",
        "in bfloat16, float16",
    ),
    "batch_rows_are_independent": (
        "Redundancy is computed from the keys of row 0 and decides in every row: in a batch, a text's survivors "
        "depend on its neighbours.",
        "in batches",
    ),
    "nan_is_refused": ("A model that overflows gives a number instead of an error.", "if keys overflow"),
    "position_decides_nothing": (
        "The evicted slot is chosen before the new token is stored, so the latest token always stays.",
        "yes",
    ),
    "takes_short_texts": (
        "Texts of fewer than P + 10 tokens are scored whole and uncompressed, and count like the others.",
        "yes",
    ),
    "compresses_before_feeding": (
        "The first eviction comes one token later, with P + 1 keys; every loss after it is another one.",
        "yes",
    ),
    "model_is_left_as_it_was": ("The caller's model stays in evaluation mode.", "no"),
}


@dataclass(frozen=True)
class Audited:
    """An implementation and what was found in it."""

    implementation: Implementation
    findings: tuple[Finding, ...]


def audit(clones: Path) -> list[Audited]:
    """Hold every implementation against the contract."""
    return [Audited(made, findings_of(made, clones)) for made in IMPLEMENTATIONS]


@functools.cache
def findings_of(implementation: Implementation, clones: Path) -> tuple[Finding, ...]:
    """What the contract finds in one implementation, in the user's clone of it; looked for once in a process."""
    subject = implementation.subject(clones)
    return tuple(check_evaluator(subject) if isinstance(subject, LossFunction) else check_compressor(subject))


def table(audited: list[Audited]) -> str:
    """One line per implementation and finding, in plain text."""
    lines = []
    for each in audited:
        source = each.implementation.source
        lines.append(f"{each.implementation.label} at {source.commit}: {len(each.findings)} findings")
        for finding in each.findings:
            case = " / ".join(line.strip() for line in finding.example.split("\n"))
            lines.append(f"  {finding.check}: {case}")
            lines.append(f"    expected {finding.expected}; got {finding.got}")
    return "\n".join(lines) + "\n"


def page(audited: list[Audited]) -> str:
    """The audit as markdown."""
    sections = [
        "# Public implementations, held against the contract",
        "",
        f"Made by `{COMMAND}`; do not edit. `tox -e wild -- --knorm-wild DIR` repeats it on your own clones, each at "
        "the commit named here. Nothing of theirs is part of this repository. A finding is listed only if it was "
        "read off the lines that are linked as well. It says that a promise of "
        "[the contract](reference/contract.md) is not kept, which the authors may never have made; the last "
        "column says whether numbers change.",
        "",
        "| implementation | method | what it claims | findings | of which change numbers |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in audited:
        made = each.implementation
        moving = [finding for finding in each.findings if FOLLOWS[finding.check][1] != "no"]
        sections.append(f"| {made.label} | {made.method} | {made.says} | {len(each.findings)} | {len(moving)} |")
    for each in audited:
        sections += ["", *_section(each)]
    return "\n".join(sections) + "\n"


def _section(audited: Audited) -> list[str]:
    made, source = audited.implementation, audited.implementation.source
    version = "version" if source.distribution else "commit"
    lines = [f"## {made.label}", "", f"{source.repository}, {version} `{source.commit}`. Claims: {made.says}."]
    if not audited.findings:
        return [*lines, "", "Keeps every promise that it claims."]
    lines += [
        "",
        "| promise not kept | smallest case | expected | got | read at | what follows | changes numbers |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for finding in audited.findings:
        follows, changes = FOLLOWS[finding.check]
        case = "<br>".join(f"`{line.strip()}`" for line in finding.example.split("\n"))
        place = source.place(made.read[finding.check])
        cells = [f"`{finding.check}`", case, _cell(finding.expected), _cell(finding.got), place, follows, changes]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
