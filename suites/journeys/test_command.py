"""The command ``knorm``: a first number on one's own text, and one sentence where something is wrong."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys

import pytest

from knorm_core.command import main
from knorm_core.inputs import hub
from knorm_core.results.terminal import Terminal

pytestmark = pytest.mark.fast

COMMANDS = ("eval", "check", "compare", "report", "prepare", "fetch")
STORY = "The ferry left at nine. Nobody had counted the passengers, and nobody would. " * 40


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    statuses = [
        line.split()[0] for line in text.partition("exit status:")[2].splitlines() if line[:4].strip().isdigit()
    ]
    assert statuses == (["0", "1", "2"] if command in ("check", "compare") else ["0", "2"])
    assert "check:" not in text.partition("exit status:")[2]
    assert f"usage: knorm {command}" in text


def test_a_model_and_a_text_of_ones_own_give_a_table(own_model, tmp_path, capsys):
    text = tmp_path / "story.txt"
    text.write_text(STORY, encoding="utf-8")
    options = ["--model", str(own_model), "--text", str(text), "--policy", "tova", "--keep-ratios", "0.5"]
    assert main(["eval", *options, "--prune-after", "40", "--max-tokens", "100"]) == 0
    output = capsys.readouterr().out
    assert "keep ratio" in output
    assert "baseline" in output
    assert "texts are resampled" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["eval", "--keep-ratios", "half"], "knorm eval: --keep-ratios half is not a list of numbers"),
        (["eval", "--dtype", "float8"], "knorm eval: --dtype float8 is not one of float64"),
        (["eval", "--model", "no-such-model"], "knorm eval: unknown model 'no-such-model'"),
        (["eval", "--keep-ratios", "50", "--model", "no-such-model"], "knorm eval: keep_ratio=50.0 is outside (0, 1]"),
        (["eval", "--policy", "lownorm", "--model", "no-such-model"], "knorm eval: policy='lownorm' is not one of"),
        (
            ["eval", "--positions", "x", "--model", "no-such-model"],
            "knorm eval: --positions='x' is not one of 'absolute'",
        ),
        (["eval", "--prune-after", "0", "--model", "no-such-model"], "knorm eval: --prune-after=0 is below 1"),
        (["eval", "--max-tokens", "-3", "--model", "no-such-model"], "knorm eval: --max-tokens=-3 is below 34"),
        (["check"], "knorm check: name a compressor, MODULE:NAME"),
        (["compare", "no-such-folder", "other"], "knorm compare: no results at no-such-folder"),
        (["report", "no-such-folder"], "knorm report: no results at no-such-folder"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_status_2(arguments, sentence, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize("named", [["mine:f"], ["--evaluator", "mine:f"], ["--policy", "mine:f"]])
def test_check_takes_a_compressor_an_evaluator_and_a_policy(named, monkeypatch):
    runs = []
    monkeypatch.setattr(pytest, "main", lambda arguments: runs.append(arguments) or pytest.ExitCode.TESTS_FAILED)
    assert main(["check", *named]) == 1
    kind = named[0].removeprefix("--") if len(named) > 1 else "compressor"
    assert runs[0][-1] == f"--knorm-{kind}=mine:f"


def test_a_text_that_is_not_there_is_named(own_model, capsys):
    assert main(["eval", "--model", str(own_model), "--text", "no-such.txt"]) == 2
    assert "no text at no-such.txt" in capsys.readouterr().err


def test_names_of_files_are_no_markup_and_command_no_terminal(own_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "a[" / "b].txt \x1b[31m.txt"  # together "[/b]", a tag that nothing has opened
    text.parent.mkdir()
    text.write_text(STORY, encoding="utf-8")
    options = ["--model", str(own_model), "--prune-after", "40", "--max-tokens", "100", "--keep-ratios", "0.5"]
    assert main(["eval", *options, "--text", "a[/b].txt \x1b[31m.txt"]) == 0
    assert "a[/b].txt \\x1b[31m.txt, low_norm" in capsys.readouterr().out.replace("\n", " ")


def test_a_text_without_a_name_is_not_the_current_folder(own_model, capsys):
    assert main(["eval", "--model", str(own_model), "--text", ""]) == 2
    assert capsys.readouterr().err.startswith("knorm eval: --text is empty")


@pytest.mark.parametrize("policy", [".:Mine", "..mine:Mine"])
def test_a_policy_of_a_relative_import_is_refused_by_name(policy, capsys):
    assert main(["eval", "--policy", policy, "--model", "no-such-model"]) == 2
    assert capsys.readouterr().err.startswith(f"knorm eval: policy='{policy}' is not one of")


def test_fetch_ends_with_the_status_of_its_help(monkeypatch, capsys):
    monkeypatch.setattr(hub, "pinned", refuse)
    assert main(["fetch"]) == 2
    assert capsys.readouterr().err == "knorm fetch: the hub sleeps\n"


def refuse(name):
    raise hub.HubError("the hub sleeps")


# --- terminals


class Stream(io.TextIOWrapper):
    """Standard output in an encoding, 20 columns wide."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding)

    def content(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_and_width_shows_every_number_and_its_sign(
    encoding, own_model, tmp_path, monkeypatch
):
    stream = Stream(encoding)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(sys, "stdout", stream)
    (tmp_path / "story.txt").write_text(STORY, encoding="utf-8")
    options = ["--model", str(own_model), "--text", str(tmp_path / "story.txt"), "--keep-ratios", "0.5,0.1"]
    assert main(["eval", *options, "--prune-after", "40", "--max-tokens", "100"]) == 0
    screen = stream.content().replace("−", "-")
    for row in ("0.5", "0.1"):
        assert re.search(
            rf"^. +{row} . +[\d,]+\.\d\d . +[-+]\d\S* % . +\[[-+]\S+, [-+]\S+\] . +\d+\.\d .$", screen, re.M
        )


def test_output_that_cannot_be_written_is_a_sentence_and_status_2(monkeypatch, capsys):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(hub, "pinned", lambda name: name)
    assert main(["fetch"]) == 2
    assert capsys.readouterr().err == "knorm fetch: [Errno 28] No space left on device\n"


def test_a_reader_who_has_gone_is_an_error_and_not_the_end_of_the_process():
    # rich by itself then exits with status 1, which of `compare` means that a cell moved.
    read, write = os.pipe()
    os.close(read)
    file = os.fdopen(write, "w")
    with pytest.raises(BrokenPipeError):
        Terminal(file=file).print("anything")
    with contextlib.suppress(BrokenPipeError):
        file.close()


@pytest.mark.parametrize(
    ("error", "status", "sentence"), [(KeyboardInterrupt, 130, "interrupted\n"), (BrokenPipeError, 2, "")]
)
def test_a_command_that_is_stopped_says_so_without_a_traceback(error, status, sentence, monkeypatch, capsys):
    def stopped(name):
        raise error

    monkeypatch.setattr(hub, "pinned", stopped)
    assert main(["fetch"]) == status
    assert capsys.readouterr().err == (f"knorm fetch: {sentence}" if sentence else "")
