"""One's own model, text and policy through the main job: measured, pinned, broken, mended, compared."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from knorm_core.results.file import SCHEMA_VERSION
from suites.journeys.conftest import ROOT, STORY

pytestmark = pytest.mark.full

JOB = "pytest -p no:cacheprovider suites/reproduction/test_reproduction.py -k matches_baseline"
FAST = "--knorm-keep-ratios 0.5 --knorm-positions absolute --knorm-prune-after 64 --knorm-max-eval-tokens 256"


def printed_command(screen):
    """The command that the message of a missing or changed baseline ends with."""
    [line] = set(re.findall(r"^E?\s*(?:If that is meant: )?(pytest .*--force-regen)$", screen, re.MULTILINE))
    return line


def test_the_main_job_on_ones_own_model_and_text(own_model, fresh_folder, typed):
    pins, out, text = fresh_folder / "pins", fresh_folder / "results", fresh_folder / "story.txt"
    own = f"{JOB} {FAST} --knorm-model '{own_model}' --knorm-text '{text}' --knorm-baselines '{pins}'"

    first = typed(f"{own} --knorm-report '{out}'", ROOT)
    assert first.status == 1
    assert "own-story" in first.end
    assert "No baseline yet: these numbers were compared with nothing." in first.end
    assert not pins.exists()
    assert "refuted" not in first.screen
    assert "the model has learned nothing, so it is evidence of nothing" in first.screen
    assert (out / "index.html").stat().st_size > 10_000
    assert "own-story" in (out / "index.html").read_text(encoding="utf-8")

    made = typed(printed_command(first.screen), ROOT)
    assert made.status == 0, made.screen
    [table] = pins.glob("my-model-*/own-story/ppl-absolute-*.csv")
    assert not list(ROOT.glob("baselines/my-model-*"))
    assert "No baseline yet" not in made.screen
    assert typed(own, ROOT).status == 0

    text.write_text(STORY * 24 + "The rest is another story, and it is told elsewhere.", encoding="utf-8")
    changed = typed(f"{own} --knorm-report '{fresh_folder / 'changed'}'", ROOT)
    assert changed.status == 1
    assert "was made from something else" in changed.screen
    assert "text: sha256:" in changed.screen
    before = table.read_text(encoding="utf-8")
    mended = typed(printed_command(changed.screen), ROOT)
    assert mended.status == 0
    assert "What changed in the baselines" in mended.screen
    assert table.read_text(encoding="utf-8") != before

    compared = typed(f"knorm compare '{out}' '{fresh_folder / 'changed'}'")
    assert compared.status == 1
    assert "by more than the golden tolerance" in compared.end
    assert typed(f"knorm compare '{out}' '{out}'").status == 0
    (out / "index.html").unlink()
    assert typed("knorm report results").status == 0
    assert (out / "index.html").exists()


PINNED = """
from knorm_core import evaluate
from knorm_core.plugin.inputs import made_from


def test_perplexity(language_model, text_set, texts_of, table_settings, golden, show_table):
    texts = texts_of(language_model, text_set, table_settings.max_eval_tokens)
    rows = [
        {"keep_ratio": ratio, "texts": len(texts),
         "ppl": evaluate(language_model.model, texts[0].input_ids, keep_ratio=ratio, prune_after=64,
                         policy="mine:Newest").ppl}
        for ratio in table_settings.keep_ratios
    ]
    show_table("my policy", rows, last=True)
    golden.check(f"{language_model.slug}/{text_set}/mine", rows, key=["keep_ratio"],
                 made_from=made_from(language_model, texts))
"""


def test_a_repository_of_ones_own_pins_its_own_policy(own_model, fresh_folder, typed):
    (fresh_folder / "conftest.py").write_text('pytest_plugins = ["knorm_core.plugin"]\n')
    (fresh_folder / "test_mine.py").write_text(PINNED)
    (fresh_folder / "texts").mkdir()
    for name in ("a", "b"):
        (fresh_folder / "texts" / f"{name}.txt").write_text(STORY * 10, encoding="utf-8")
    command = (
        f"pytest -q -p no:cacheprovider --knorm-model {shlex.quote(str(own_model))} --knorm-text texts,story.txt "
        f"--knorm-max-eval-tokens 200 --knorm-keep-ratios 0.5"
    )
    missing = typed(command)
    assert missing.status == 1
    assert "2 failed" in missing.end
    assert "no baseline" in missing.screen
    assert typed(f"{command} --force-regen").status == 0
    tables = sorted(path.parent.name for path in fresh_folder.glob("baselines/*/*/mine.csv"))
    assert tables == ["own-story", "own-texts"]
    assert typed(command).status == 0

    module = fresh_folder / "mine.py"
    module.write_text(module.read_text().replace("return seen.positions", "return -seen.positions"))
    broken = typed(command)
    assert broken.status == 1
    assert "the numbers changed against" in broken.screen
    module.write_text(module.read_text().replace("-seen", "seen"))
    assert typed(command).status == 0


def test_a_compressor_and_a_policy_of_ones_own_at_the_command(own_model, fresh_folder, typed):
    before = {path.name for path in fresh_folder.iterdir()} | {"__pycache__"}
    held = typed("knorm check mine:compress")
    assert held.status == 0, held.screen
    assert {path.name for path in fresh_folder.iterdir()} <= before
    broken = typed("knorm check mine:off_by_one")
    assert broken.status == 1
    assert "off_by_one" in broken.end
    table = typed(f"knorm eval --model '{own_model}' --text story.txt --policy mine:Newest --prune-after 64")
    assert table.status == 0, table.screen
    assert "mine:Newest" in table.end
    nothing = typed("knorm check mine:no_such")
    assert nothing.status == 2
    assert "mine has no no_such" in nothing.end
    assert "Traceback" not in nothing.screen


def test_results_that_share_no_table_are_no_pass(fresh_folder, typed):
    for name, table in (("a", "m/t/x"), ("b", "m/t/y")):
        (fresh_folder / name).mkdir()
        lines = [
            {"kind": "schema", "version": SCHEMA_VERSION},
            {"kind": "table", "name": table, "key": [], "rows": [{"ppl": 1.0}]},
        ]
        (fresh_folder / name / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    compared = typed("knorm compare a b")
    assert compared.status == 2
    assert compared.screen.endswith("no table is in both, so nothing was compared\n")
