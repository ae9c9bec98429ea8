"""The ledger's files: what was claimed and how to test it, and no verdict; what is wrong is said with its place."""

from __future__ import annotations

import tomllib

import pytest

from knorm_core.claims import ClaimError, load_claims
from knorm_core.results.records import VERDICTS
from suites.claims.recorded import BASELINES

pytestmark = pytest.mark.fast

SOUND = """\
source = "report"

[defaults]
needs = "tox"

[[claim]]
id = "c"
claim = "It is 13 % higher."
where = "table"
setting = "as it says"
about = "any model"
text_sets = ["t"]
tables = ["ppl"]
check = "change"
arguments = { row = { keep_ratio = 0.9 } }
expected = 13
unit = "%"
tolerance = 5
"""


@pytest.fixture
def load(tmp_path):
    def written(text, name="r.toml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return load_claims(tmp_path)

    return written


def test_a_sound_file_is_read_with_its_defaults(load):
    [claim] = load(SOUND)
    assert (claim.id, claim.source, claim.needs) == ("c", "report", "tox")
    assert claim.arguments == {"row": {"keep_ratio": 0.9}, "expected": 13, "tolerance": 5}
    assert (claim.expected_text, claim.tolerance_text) == ("+13 %", "5 points")
    assert (claim.stand_in, claim.about, claim.about_any_model) == (None, ("any model",), True)


def test_a_claim_may_be_about_several_models(load):
    [claim] = load(SOUND.replace('"any model"', '["a/b", "c"]'))
    assert (claim.about, claim.about_any_model) == (("a/b", "c"), False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "report"', 'source = "rumour"', "r.toml: source = 'rumour' is not one of report, paper"),
        ('source = "report"', "", "r.toml: key 'source' is missing"),
        ('[defaults]\nneeds = "tox"', "defaults = 3", "r.toml: defaults = 3 is not a table"),
        ('needs = "tox"', 'need = "tox"', "r.toml, defaults: unknown key 'need'"),
        ("[[claim]]", "[claim]", "r.toml: claim is not an array of tables"),
        ('id = "c"', "", "r.toml, claim 'number 1': key 'id' is missing"),
        ('id = "c"', "id = 3", "r.toml, claim 3: id = 3 is not text"),
        ('claim = "It', 'verdict = "refuted"\nclaim = "It', "r.toml, claim 'c': unknown key 'verdict'"),
        ("higher.", "higher", "claim 'c': claim = 'It is 13 % higher' is not a sentence"),
        ('"any model"', "[]", r"claim 'c': about = \[\] is not a model or a list of them"),
        ('["t"]', '"t"', "claim 'c': text_sets = 't' is not a list of names"),
        ('["ppl"]', "[]", r"claim 'c': tables = \[\] is not a list of names"),
        ('"change"', '"chnage"', "claim 'c': check = 'chnage' does not exist; there are attention_loss_is_low, "),
        ("{ row =", "{ rows =", "claim 'c', arguments of change: key 'row' is missing"),
        (
            "0.9 } }",
            "0.9 }, also = 1 }",
            "claim 'c', arguments of change: unknown key 'also'; allowed are row, expected",
        ),
        ("row = { keep_ratio = 0.9 }", 'row = "0.9"', "claim 'c': arguments.row = '0.9' is not what change takes"),
        ("expected = 13", "expected = true", "claim 'c': expected = True is not a number, a pair"),
        ("expected = 13", "expected = [2, 1]", r"claim 'c': expected = \[2, 1\] is not a number, a pair"),
        ("expected = 13", 'expected = "much"', "claim 'c', arguments of change: key 'expected' is missing"),
        ("tolerance = 5", "tolerance = -1", "claim 'c': tolerance = -1 is not a number of per cent"),
        ("tolerance = 5", "stand_in = 5", "claim 'c': stand_in = 5 is not a list of text sets"),
        ("tolerance = 5", "stand_in = []", "claim 'c': stand_in goes with a claim about a named model, and this one"),
        ("tolerance = 5", "faults = { drift = {} }", r"claim 'c': faults.'drift' = \{\} is not a table with other"),
        ("tolerance = 5", 'faults.drift.table = ["x"]', "claim 'c', faults.'drift': unknown key 'table'"),
        ("tolerance = 5", "faults.drift.arguments = { rows = 1 }", "claim 'c', faults.'drift'.arguments of change: "),
        ("tolerance = 5", "tolerance = ", "r.toml: Invalid value"),
    ],
)
def test_what_is_wrong_is_said_with_file_claim_and_key(load, old, new, message):
    assert old in SOUND
    with pytest.raises(ClaimError, match=message):
        load(SOUND.replace(old, new, 1))


def test_an_id_names_one_claim_in_all_files(load):
    load(SOUND)
    with pytest.raises(ClaimError, match="two claims have the id 'c'"):
        load(SOUND.replace('"report"', '"paper"'), "p.toml")


def test_an_empty_folder_and_bytes_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(ClaimError, match=r"no claims in .*: one \.toml file per source"):
        load_claims(tmp_path)
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ClaimError, match=r"r\.toml: 'utf-8' codec"):
        load_claims(tmp_path)


def test_no_file_holds_a_verdict():
    def values(content):
        if isinstance(content, dict):
            assert "verdict" not in content
            content = content.values()
        if isinstance(content, str):
            yield content
        elif not isinstance(content, int | float):
            for value in content:
                yield from values(value)

    for path in (BASELINES / "claims").glob("*.toml"):
        texts = list(values(tomllib.loads(path.read_text(encoding="utf-8"))))
        assert len(texts) > 100
        assert not [text for text in texts for verdict in VERDICTS if verdict in text.lower()]


def test_the_tables_of_the_report_are_all_in_the_ledger():
    cells = {claim.where for claim in load_claims(BASELINES / "claims") if claim.where.startswith("table, keep")}
    columns = ("Wikitext PPL", "PG-19 PPL", "TTFT", "throughput")
    wanted = {f"table, keep {keep}, {column}" for keep in (0.9, 0.5, 0.1) for column in columns}
    assert cells == wanted | {"table, keep 1.0, Wikitext PPL", "table, keep 1.0, PG-19 PPL"}
