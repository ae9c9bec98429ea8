"""Bad input is refused before any model runs: one sentence that names the argument, the value and what is allowed."""

from __future__ import annotations

import re
import warnings
from fractions import Fraction

import pytest
import torch
from transformers import BatchEncoding

from knorm_core import (
    ModelNotFoundError,
    NoEvictionError,
    TextNotFoundError,
    UnsupportedModelError,
    effective_prune_after,
    evaluate,
    evaluate_batch,
    evaluate_rows,
    evaluate_table,
    kept_count,
    l2_compress,
    load_model,
    load_texts,
    measure_latency,
    perplexity,
)
from knorm_core.latency import measure_contexts
from knorm_core.methods import onepass
from knorm_core.policies import SnapKV
from knorm_core.setting import Setting, SlowFallbackWarning
from suites.families import random_ids, tiny_model

pytestmark = pytest.mark.fast

NAN = float("nan")
RATIOS = [
    (0, ValueError),
    (0.0, ValueError),
    (-0.5, ValueError),
    (1.1, ValueError),
    (NAN, ValueError),
    (float("inf"), ValueError),
    ("0.5", TypeError),
    (True, TypeError),
    (None, TypeError),
]
LENGTHS = [(0, ValueError), (-3, ValueError), (1.5, TypeError), ("256", TypeError), (True, TypeError)]
PAIRS = [(torch.ones(1, 1, 8, 2), torch.ones(1, 1, 8, 2))]


@pytest.fixture
def untouchable():
    """A model that fails the test when it is run."""

    def ran(*_):
        pytest.fail("the model ran before its input was refused")

    model = tiny_model("llama", seed=7)
    handle = model.register_forward_pre_hook(ran)
    yield model
    handle.remove()


@pytest.mark.parametrize(("ratio", "error"), RATIOS)
def test_a_senseless_keep_ratio_is_refused_before_the_model_runs(ratio, error, untouchable):
    for call in (
        lambda: kept_count(10, ratio),
        lambda: l2_compress(PAIRS, ratio, 1),
        lambda: evaluate(untouchable, random_ids(60), keep_ratio=ratio),
        lambda: evaluate_table(untouchable, random_ids(60), keep_ratios=[1.0, ratio]),
    ):
        with pytest.raises(error, match="keep_ratio="):
            call()


@pytest.mark.parametrize(("length", "error"), LENGTHS)
def test_a_senseless_prune_after_is_refused_before_the_model_runs(length, error, untouchable):
    for call in (
        lambda: effective_prune_after(100, length),
        lambda: l2_compress(PAIRS, 0.5, length),
        lambda: evaluate(untouchable, random_ids(60), keep_ratio=0.5, prune_after=length),
    ):
        with pytest.raises(error, match="prune_after="):
            call()


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (random_ids(33), ValueError, "33 tokens; a text needs at least 34"),
        ([], ValueError, "empty"),
        (torch.zeros(0, dtype=torch.int64), ValueError, "0 tokens"),
        (random_ids(60).float(), TypeError, "dtype torch.float32"),
        (random_ids(60).expand(2, 60), ValueError, r"shape \(2, 60\); one text at a time"),
        (torch.full((60,), 97), ValueError, r"holds 97, but the model's vocabulary is 0 … 96"),
        (torch.full((60,), -1), ValueError, "holds -1"),
        (random_ids(513), ValueError, "513 tokens, but the model has 512 positions"),
    ],
)
def test_tokens_that_are_no_text_of_the_model_are_refused_before_it_runs(ids, error, message, untouchable):
    with pytest.raises(error, match=message):
        evaluate(untouchable, ids, keep_ratio=0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"policy": "lowest"}, ValueError, "policy='lowest' is not one of 'low_norm'"),
        ({"positions": "relative"}, ValueError, "positions='relative' is not one of 'absolute', 'cache'"),
        ({"method": "twopass"}, ValueError, "method='twopass' is not one of 'onepass', 'stepwise'"),
        ({"when": "never"}, ValueError, "when='never' is not one of 'every_step'"),
        ({"score_from": "phase1"}, ValueError, "score_from='phase1' is not one of 'phase2', 'start'"),
        ({"skip_layers": [3]}, ValueError, "names layer 3, but there are 3 layers"),
        ({"skip_layers": [-1]}, ValueError, "skip_layers=-1 is below 0"),
        ({"skip_layers": "0"}, TypeError, "skip_layers='0' is not a collection"),
        ({"skip_layers": [0, 1, 2]}, ValueError, "no layer is left to compress"),
        ({"compressor": "l2"}, TypeError, "compressor='l2' is not callable"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"budget": 10}, ValueError, "budget=10 goes with when='fixed_budget', not when='every_step'"),
        ({"window": 10}, TypeError, "evaluate's window is called recent now"),
        ({"policy": "recent"}, ValueError, "policy='recent' is called 'newest' now"),
        ({"policy": "sink_recent"}, ValueError, "policy='sink_recent' is policy='newest' with sinks=4 now"),
        ({"sinks": -1}, ValueError, "sinks=-1 is below 0"),
        ({"recent": 1.5}, TypeError, "recent=1.5 is not an integer"),
        ({"first_eviction_after": -1}, ValueError, "first_eviction_after=-1 is below 0"),
        ({"keep_ratio": [0.5, 0.9]}, ValueError, r"keep_ratio=\[0.5, 0.9\] has 2 values: .* each of 3 layers"),
        ({"keep_ratio": [0.5, 0.9, 1.5]}, ValueError, r"keep_ratio=1.5 is outside \(0, 1\]"),
        ({"keep_ratio": [0.5, 0.9, 0.9], "positions": "rerotated"}, ValueError, "by layer does not go with positions"),
        ({"sinks": 1, "compressor": print}, ValueError, "sinks=1 and recent=0 go with a policy: compressor alone"),
        (
            {"keep_ratio": 0.1, "sinks": 3, "recent": 2, "prune_after": 40},
            ValueError,
            "sinks=3 and recent=2 protect 5 keys, and keep_ratio=0.1 keeps 4 of 32: protect fewer, or keep more",
        ),
        (
            {"policy": SnapKV(window=30), "prune_after": 40},
            ValueError,
            r"recent=30 of policy SnapKV\(window=30, kernel=5\) protect 30 keys, and keep_ratio=0.5 keeps 16 of 32",
        ),
        ({"when": "fixed_budget", "budget": 40}, ValueError, "keep_ratio=0.5 has no meaning"),
        ({"when": "fixed_budget", "keep_ratio": None}, TypeError, "budget=None is not an integer"),
        ({"when": "fixed_budget", "keep_ratio": None, "budget": 0}, ValueError, "budget=0 is below 1"),
        (
            {"when": "fixed_budget", "keep_ratio": None, "budget": [30, 9, 20], "recent": 9},
            ValueError,
            "sinks=0 and recent=9 protect 9 keys, and budget=9 keeps 8 of",
        ),
        (
            {"when": "fixed_budget", "keep_ratio": None, "budget": 59},
            ValueError,
            "phase 2 of a text of 60 tokens empty",
        ),
    ],
)
def test_a_senseless_argument_of_evaluate_is_refused_before_the_model_runs(arguments, error, message, untouchable):
    with pytest.raises(error, match=message):
        evaluate(untouchable, random_ids(60), **({"keep_ratio": 0.5} | arguments))


def test_no_texts_have_no_perplexity():
    with pytest.raises(ValueError, match="empty list of texts"):
        perplexity([])


def test_a_compressor_that_returns_no_cache_is_refused():
    with pytest.raises(TypeError, match="past_key_values is a int"):
        evaluate(tiny_model("llama"), random_ids(60), keep_ratio=0.5, compressor=lambda *_, **__: 7)


def test_a_compressor_that_returns_nothing_and_changes_nothing_never_evicted():
    with pytest.raises(NoEvictionError, match="nothing is ever evicted"):
        evaluate(tiny_model("llama"), random_ids(60), keep_ratio=0.5, compressor=lambda *_, **__: None)


@pytest.mark.parametrize("kind", ["static", "quantised", "sliding", "empty", "none", "ints", "shape", "integer keys"])
def test_caches_that_cannot_be_pruned_are_named(kind):
    import transformers
    from transformers import DynamicCache, StaticCache

    config = tiny_model("llama").config
    keys = torch.ones(1, 1, 8, 2)
    match kind:
        case "static":
            cache = StaticCache(config=config, max_cache_len=8)
            cache.update(torch.ones(1, 2, 4, 8), torch.ones(1, 2, 4, 8), 0, {"cache_position": torch.arange(4)})
            error, message = TypeError, "StaticCache whose layer 0 is a StaticLayer"
        case "quantised":
            from transformers.cache_utils import QuantizedLayer

            class Quantised(QuantizedLayer):  # the concrete ones need a backend that is not installed
                _quantize = _dequantize = None

            cache = DynamicCache()
            cache.layers = [object.__new__(Quantised)]
            error, message = TypeError, "layer 0 is a Quantised;"
        case "sliding":
            cache = DynamicCache(config=transformers.MistralConfig(sliding_window=8, num_hidden_layers=1))
            error, message = TypeError, "DynamicSlidingWindowLayer"
        case "empty":
            cache = DynamicCache(config=config)
            error, message = ValueError, "holds no keys in layer 0"
        case "none":
            cache, error, message = None, TypeError, "past_key_values is a NoneType"
        case "ints":
            cache, error, message = [1, 2], TypeError, r"past_key_values\[0\] is not a \(key, value\) pair"
        case "shape":
            cache, error, message = [(keys, keys[:, :, 1:])], ValueError, "both have to be"
        case "integer keys":
            cache, error, message = [(keys.long(), keys)], TypeError, "keys of torch.int64"
    with pytest.raises(error, match=message):
        l2_compress(cache, 0.5, 1)


@pytest.mark.parametrize("name", ["no-such-model", "./missing", "/nowhere/at/all", "a/b/c"])
def test_a_model_that_is_not_there_says_where_it_was_sought(name):
    with pytest.raises(ModelNotFoundError, match="no folder at /"):
        load_model(name)


def test_a_model_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelNotFoundError, match=r"has no model\.safetensors, only pytorch_model\.bin: .* run code"):
        load_model(tmp_path)


def test_unknown_texts_and_folders_without_the_text(tmp_path):
    with pytest.raises(TextNotFoundError, match="unknown text 'bible': choose from embedded-articles"):
        load_texts("bible", None)
    for name, path in [("wikitext-articles", "wikitext-2-raw/test.txt"), ("pg19", "pg19/<id>.txt")]:
        with pytest.raises(TextNotFoundError, match=f"no text at {tmp_path}/{path}"):
            load_texts(name, None, text_dir=tmp_path)
    (tmp_path / "wikitext-2-raw").mkdir()
    (tmp_path / "wikitext-2-raw" / "test.txt").write_text(" = Another = \n")
    with pytest.raises(TextNotFoundError, match="not the text that it should be"):
        load_texts("wikitext", None, text_dir=tmp_path)


def test_a_pass_in_which_some_layer_never_called_is_refused():
    setting = Setting(seq_len=60, layers=4, start=40, keep_ratio=(Fraction(1, 2),) * 4)  # of a model with three
    with pytest.raises(UnsupportedModelError, match=r"4 layers .* layers \[0, 1, 2\]"):
        onepass.run(tiny_model("llama"), random_ids(60), setting)


def test_a_model_of_which_every_layer_slides_has_nothing_to_compress():
    import transformers

    config = transformers.MistralConfig(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=9,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"no layer is left to compress: .* sliding-window layers=\[0, 1\]"):
        evaluate(model, random_ids(60), keep_ratio=0.5)


@pytest.mark.parametrize("family", ["Bloom", "Mpt"])
@pytest.mark.parametrize("method", ["onepass", "stepwise"])
def test_families_whose_bias_goes_by_place_are_refused(family, method):
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=97, hidden_size=32, d_model=32, n_layer=2, n_layers=2, n_head=4, n_heads=4, max_seq_len=512
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match=f"{family}ForCausalLM reads the distance of a key off its place"):
        evaluate(model, random_ids(60), keep_ratio=0.5, prune_after=40, method=method)


ENCODED = BatchEncoding({"input_ids": [list(range(40))], "attention_mask": [[1] * 40]})
ASKED_OF_IDS = {
    "evaluate": lambda model, ids: evaluate(model, ids, keep_ratio=0.5),
    "evaluate_rows": lambda model, ids: evaluate_rows(model, ids, {"row": {"keep_ratio": 0.5}}),
    "evaluate_table": lambda model, ids: evaluate_table(model, ids, keep_ratios=[0.5]),
    "evaluate_batch": lambda model, ids: evaluate_batch(model, ids, keep_ratio=0.5),
    "measure_latency": lambda model, ids: measure_latency(model, ids, keep_ratios=[0.5], prune_after=36, new_tokens=2),
    "measure_contexts": lambda model, ids: measure_contexts(model, ids, contexts=[36], keep_ratios=[0.5]),
}


@pytest.mark.parametrize("function", ASKED_OF_IDS)
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (ENCODED, "input_ids is a BatchEncoding: give its input_ids alone, as in tokenizer(text).input_ids"),
        ({"input_ids": [1] * 40}, "input_ids is a dict: give its input_ids alone"),
        ("The ferry left at nine.", "input_ids is text (a str): tokenise it first, as in tokenizer(text).input_ids"),
        (["The ferry", "left"], "input_ids is text (a list): tokenise it first"),
        (None, "input_ids is a NoneType that holds no integers: give token ids"),
        ([None] * 40, "input_ids is a list that holds no integers: give token ids"),
    ],
    ids=["encoding", "dict", "text", "texts", "none", "nones"],
)
def test_what_is_no_ids_is_told_what_to_do_whoever_is_asked(function, given, sentence, untouchable):
    with pytest.raises(TypeError, match=re.escape(sentence)):
        ASKED_OF_IDS[function](untouchable, given)


def test_one_pass_asked_for_by_name_with_a_function_says_that_it_runs_stepwise():
    model, ids = tiny_model("llama"), random_ids(60)
    with pytest.warns(SlowFallbackWarning, match=r"compressor=l2_compress is evaluated token by token in spite of"):
        named = evaluate(model, ids, keep_ratio=0.5, compressor=l2_compress, method="onepass")
    assert named.method == "stepwise"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # where nobody has named a method, nothing is said
        assert evaluate(model, ids, keep_ratio=0.5, compressor=l2_compress).ppl == named.ppl
        evaluate(model, ids, keep_ratio=0.5, compressor=l2_compress, method="stepwise")


def test_an_evaluation_is_shown_in_a_line():
    evaluation = evaluate(tiny_model("llama"), random_ids(60), keep_ratio=0.5, skip_layers=[0])
    assert repr(evaluation) == (
        f"Evaluation(ppl={evaluation.ppl:.6g}, {len(evaluation.nll)} of 60 tokens scored, prune_after "
        f"{evaluation.effective_prune_after}, 0 to {max(evaluation.evictions_per_layer)} evictions per layer, peak "
        f"cache {evaluation.peak_cache}, onepass)"
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16])
def test_token_ids_are_integers_of_any_width(dtype):
    model, ids = tiny_model("llama"), random_ids(60)
    given = {"keep_ratio": 0.5, "prune_after": 40}
    assert torch.equal(evaluate(model, ids.to(dtype), **given).nll, evaluate(model, ids, **given).nll)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.zeros(60, dtype=torch.int64, device="meta"), ValueError, "input_ids is on the device meta"),
        (torch.zeros(60, dtype=torch.int64).to_sparse(), ValueError, "input_ids is on the layout torch.sparse_coo"),
        (torch.full((60,), 2**63, dtype=torch.uint64), ValueError, "input_ids holds -9223372036854775808"),
    ],
)
def test_tensors_that_hold_no_plain_ids_are_refused(ids, error, message):
    with pytest.raises(error, match=message):
        evaluate(tiny_model("llama"), ids, keep_ratio=0.5, prune_after=40)


@pytest.mark.parametrize("name", ["adjust", "allow_no_eviction"])
@pytest.mark.parametrize("value", [None, 1, "yes", [], [0.5], torch.tensor([0.5, 0.5])])
def test_a_switch_is_true_or_false(name, value):
    with pytest.raises(TypeError, match=f"{name}=.* is neither True nor False"):
        evaluate(tiny_model("llama"), random_ids(60), keep_ratio=0.5, prune_after=40, **{name: value})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate_rows(tiny_model("llama"), random_ids(60), [0.5]), "rows is a list"),
        (lambda: evaluate_rows(tiny_model("llama"), random_ids(60), {"a": 0.5}), r"rows\['a'\] is a float"),
        (lambda: evaluate(tiny_model("llama"), random_ids(60), keep_ratio=0.5, skip_layers=torch.tensor(1)), "skip_la"),
        (lambda: load_model(None), "name=None is no name and no path"),
        (lambda: load_model(b"x"), "name=b'x' is no name and no path"),
        (lambda: load_texts("embedded-short", None), "tokenizer=None is no tokenizer"),
        (lambda: load_texts(3, print), "name=3 is no name and no path"),
        (lambda: load_texts([0.5], print), "name=0.5 is no name and no path"),
        (lambda: load_texts("embedded-short", print, text_dir=3), "text_dir=3 is no name and no path"),
    ],
)
def test_what_is_of_another_type_is_said_by_name(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_no_tokens_at_all_are_not_the_default():
    with pytest.raises(ValueError, match="max_eval_tokens=0 is below 34"):
        load_texts("embedded-short", print, max_eval_tokens=0)
