"""Files with a few things wrong, and readers of them in processes of their own: bounded in memory and in time."""

from __future__ import annotations

import pickle
import resource
import signal
import tempfile
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from suites.kills_and_damage.killed import Process

SECONDS, MEMORY = 60, 2 << 30  # bytes beyond what the process has already

Change = tuple[str, float, int]

_where = st.one_of(st.floats(0, 1, exclude_max=True), st.floats(0, 0.02), st.floats(0.98, 1, exclude_max=True))
# Lengths and counts as a format has them, far too large, negative, or zero.
_numbers = st.sampled_from(
    [0, 1, 0xFF, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 63) - 1, 1 << 63]
)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), _where, st.integers(0, 7)),
        st.tuples(st.just("cut"), _where, st.just(0)),
        st.tuples(st.just("number"), _where, _numbers),
        st.tuples(st.just("drop"), _where, st.integers(1, 64)),
        st.tuples(st.just("double"), _where, st.integers(1, 64)),
    ),
    min_size=1,
    max_size=3,
)


def changed(content: bytes, what: list[Change]) -> bytes:
    """The content after the changes: a bit flipped, an end cut off, a number written over, bytes dropped or doubled."""
    for kind, where, number in what:
        at = int(where * len(content))
        before, after = content[:at], content[at:]
        if kind == "flip":
            after = bytes([after[0] ^ (1 << number)]) + after[1:] if after else after
        elif kind == "cut":
            after = b""
        elif kind == "number":
            after = number.to_bytes(8, "little") + after[8:]
        elif kind == "drop":
            after = after[number:]
        else:
            after = after[:number] + after
        content = before + after
    return content


def for_every_change(content: bytes, examples: int, check: Callable[[bytes], Any]) -> None:
    """Call ``check`` with so many changed copies of ``content``."""

    @settings(max_examples=examples)
    @given(what=changes)
    def run(what: list[Change]) -> None:
        check(changed(content, what))

    run()


def refusal(action: Callable[[], Any]) -> Exception | None:
    """The exception that the action ends with, or None; a crash, a hang, and a want of memory are failures."""
    with tempfile.TemporaryFile() as answer:

        def run(_: Callable[[int], Any]) -> None:
            with open("/proc/self/statm") as statm:
                already = int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (already + MEMORY, already + MEMORY))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            result = None
            try:
                action()
            except Exception as error:
                result = error
            signal.alarm(0)
            wanted = wants_memory(result)
            if result is not None:
                # Not what it comes from: the errors of safetensors before 0.6 cannot be sent.
                result.__cause__ = result.__context__ = None
            try:
                sent = pickle.dumps((result, wanted))
            except Exception as error:  # of whatever kind: it is told, where the child would end without a word
                sent = pickle.dumps((RuntimeError(f"{result!r} cannot be sent: {error!r}"), wanted))
            answer.write(sent)
            answer.flush()

        status, _ = Process(run).end()
        assert status != -signal.SIGALRM, f"not through after {SECONDS} seconds"
        assert status == 0, f"the process ended with status {status}: it crashed, or wanted more than {MEMORY} bytes"
        answer.seek(0)
        error, wanted = pickle.load(answer)
    assert not wanted, f"it wanted more than {MEMORY} bytes: {error!r}"
    return error


def wants_memory(error: BaseException | None) -> bool:
    """Whether it is a MemoryError, or comes from one."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None
