"""What an evaluation of a compressor promises: most faults of this field sit here, not in the compressor.

They are run on the models of `knorm_core.contract.tiny_models`, from the smallest setting up, and
compared with `knorm_core.evaluate(method="stepwise")`, the definition, set to what the evaluator claims.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from knorm_core.contract import tiny_models, variants
from knorm_core.contract.attempts import ATOL, attempting, definition, plain_losses
from knorm_core.contract.causes import shortest_text
from knorm_core.contract.checks import check
from knorm_core.contract.evaluators import LossFunction
from knorm_core.contract.findings import Broken

EVALUATOR = "evaluator"


@check(EVALUATOR)
def takes_short_texts(evaluator: LossFunction) -> None:
    """A text with two tokens to score after phase 1 is evaluated like any other.

    Guards against a fallback for short texts, which puts the uncompressed loss of a whole text into a table of
    compressed ones.
    """
    shortest_text(evaluator)


@check(EVALUATOR)
def ratio_one_is_the_plain_loss(evaluator: LossFunction) -> None:
    """At keep ratio 1 the loss of every scored token is that of one plain forward pass.

    Guards against scoring off by one (a token scored by the logits of its own position), and against a
    baseline that is itself compressed or fed at wrong positions.
    """
    with attempting(evaluator) as attempt:
        for run in (attempt.run(40, 1.0, 32), attempt.run(80, 1.0, 32), attempt.run(80, 1.0, 32, "gpt_neox")):
            plain = plain_losses(run)[evaluator.claims.scored(run.seq_len, run.prune_after).start - 1 :]
            attempt.compare(run, plain, attempt.losses(run))


@check(EVALUATOR)
def scores_exactly_the_promised_tokens(evaluator: LossFunction) -> None:
    """One loss is returned for each promised token and none for any other.

    Guards against the uncompressed loss of phase 1 being mixed into the result, which halves whatever
    compression costs, and against a last token that is dropped or a mean in place of losses.
    """
    with attempting(evaluator) as attempt:
        for run in (attempt.run(40, 0.5, 32), attempt.run(60, 0.9, 32), attempt.run(90, 0.5, 48)):
            attempt.losses(run)


@check(EVALUATOR)
def never_sees_the_future(evaluator: LossFunction) -> None:
    """Changing later tokens leaves the losses of earlier ones as they are.

    Guards against survivors chosen with knowledge of the whole text, as when a text is fed whole,
    compressed, and scored after.
    """
    with attempting(evaluator) as attempt:
        for run in (attempt.run(60, 0.5, 32), attempt.run(60, 0.9, 32, "gpt_neox")):
            start = evaluator.claims.scored(run.seq_len, run.prune_after).start
            original = attempt.losses(run)
            for changed_from in (run.seq_len - 1, run.seq_len - 12):
                tokens = tiny_models.text(run.seq_len)
                tokens[changed_from:] = (tokens[changed_from:] + 1) % tiny_models.VOCABULARY
                losses = attempt.losses(run, tokens=tokens)
                untouched = changed_from - start
                attempt.compare(run, original[:untouched], losses[:untouched], tokens_changed_from=f"{changed_from} on")


@check(EVALUATOR)
def evicts_while_scoring(evaluator: LossFunction) -> None:
    """A keep ratio of 0.1 changes losses, or is refused where the text is too short to compress.

    Guards against a prune_after that the cache never reaches: with prune_after as long as the text, or
    longer, the uncompressed loss is printed as the result of compression.
    """
    with attempting(evaluator) as attempt:
        for prune_after in (32, 79, 80, 256):
            run = attempt.run(80, 0.1, prune_after)
            claims = evaluator.claims
            reached = claims.start(run.seq_len, prune_after) < run.seq_len - 1
            losses, refusal = attempt.losses_or_refusal(run)
            if losses is None:
                if reached:
                    raise Broken(expected="losses under compression", got=refusal)
                continue
            plain = plain_losses(run)[-len(losses) :] if len(losses) else losses
            if bool(((plain - losses).abs() <= ATOL).all()):
                raise Broken(
                    expected="losses that show the eviction, or an error that says that none happened",
                    got=f"{len(losses)} losses, all equal to the uncompressed ones",
                )


@check(EVALUATOR)
def positions_do_not_drift(evaluator: LossFunction) -> None:
    """After an eviction every token is still fed at its true position in the text.

    Guards against position drift: where nobody passes positions, transformers takes the length of layer
    0's cache, which has just shrunk, and the query moves towards keys rotated for their true positions.
    It punishes frequent eviction most and can turn the curve over keep ratios upside down.
    """
    with attempting(evaluator) as attempt:
        for model in ("llama", "gpt_neox"):
            # One eviction only, so that nothing else can differ.
            attempt.compare_with_definition(attempt.run(47, 0.5, 32, model))


@check(EVALUATOR)
def compresses_before_feeding(evaluator: LossFunction) -> None:
    """The cache is compressed before a token is fed, so that the first eviction meets P keys.

    Guards against loops that feed a token and compress then: the first eviction meets P + 1 keys and comes one
    token later, and every loss from there on is another one.
    """
    with attempting(evaluator) as attempt:
        run = attempt.run(47, 0.5, 32)
        later = replace(evaluator.claims, first_eviction_after=evaluator.claims.first_eviction_after + 1)
        attempt.is_not(run, later, "compresses after feeding a token instead of before")


@check(EVALUATOR)
def compresses_as_claimed(evaluator: LossFunction) -> None:
    """Each eviction comes at the threshold and keeps the tokens that the claimed compressor keeps.

    Guards against > for >=, against kept counts that are rounded down or one off, and against values that lost
    the order of their keys, between a compressor that is right and the loop around it.
    """
    with attempting(evaluator) as attempt:
        run = attempt.run(47, 0.5, 32)
        for variant in (variants.above_threshold, variants.keeping_floor, variants.values_out_of_order):
            claims = replace(evaluator.claims, compressor=variant(evaluator.claims.compressor))
            attempt.is_not(run, claims, (variant.__doc__ or "").strip())


@check(EVALUATOR)
def goes_on_evicting(evaluator: LossFunction) -> None:
    """The cache is compressed whenever it reaches the threshold, and losses show it to the last token.

    Guards against evaluators that fire once and then never again, and against blocks of tokens fed
    between evictions that the definition puts at every token.
    """
    with attempting(evaluator) as attempt:
        for run in (attempt.run(84, 0.5, 32), attempt.run(84, 0.9, 32), attempt.run(84, 0.5, 32, "gpt_neox")):
            attempt.compare_with_definition(run)


@check(EVALUATOR, "skip_layers")
def layers_may_differ_in_length(evaluator: LossFunction) -> None:
    """With some layers skipped, so that layers differ in length, losses are still those of the definition.

    Guards against a block of tokens fed at once: transformers makes one mask, for the length of one
    layer, and in the others tokens of the block see each other's future or miss their past.
    """
    with attempting(evaluator) as attempt:
        for model in ("llama", "gpt_neox"):
            attempt.compare_with_definition(attempt.run(60, 0.5, 32, model))


@check(EVALUATOR)
def keeping_everything_is_a_no_op(evaluator: LossFunction) -> None:
    """A keep ratio below 1 whose kept count is the whole cache gives the plain loss, or is refused.

    Guards against evaluators that evict a key too many, or change something besides, whenever they are
    asked to compress: the difference is then taken for the cost of eviction.
    """
    with attempting(evaluator) as attempt:
        run = attempt.run(60, 0.99, 32)
        losses, _ = attempt.losses_or_refusal(run)
        if losses is not None:
            attempt.compare(run, definition(evaluator.claims, run), losses)


@check(EVALUATOR)
def two_runs_agree(evaluator: LossFunction) -> None:
    """The same evaluation twice, with another in between, gives the same losses.

    Guards against a cache, hook or seed that outlives an evaluation, so that a row of a table depends on
    the rows before it.
    """
    with attempting(evaluator) as attempt:
        run = attempt.run(60, 0.5, 32)
        model = tiny_models.llama()
        first = attempt.losses(run, model)
        attempt.losses(attempt.run(70, 0.1, 32), model)
        attempt.compare(run, first, attempt.losses(run, model))


@check(EVALUATOR)
def dropout_is_off(evaluator: LossFunction) -> None:
    """A model handed over in training mode has the same losses as in evaluation mode.

    Guards against a missing eval(): random losses that look like the cost of compression.
    """
    with attempting(evaluator) as attempt:
        sober = attempt.losses(attempt.run(40, 0.5, 32, "gpt_neox"))
        run = attempt.run(40, 0.5, 32, "gpt_neox_training")
        attempt.compare(run, sober, attempt.losses(run))


@check(EVALUATOR)
def model_is_left_as_it_was(evaluator: LossFunction) -> None:
    """Weights, configuration, training mode and hooks are as before, also after an exception.

    Guards against an attention function, a hook or eval() left behind: whatever is measured next on the
    model is measured on another model.
    """
    with attempting(evaluator) as attempt:
        run = attempt.run(40, 0.5, 32, "gpt_neox_training")
        for fails in (False, True):
            model = tiny_models.gpt_neox_training()
            hook = model.gpt_neox.layers[-1].register_forward_hook(_fail) if fails else None
            before = _state(model)
            if fails:
                with contextlib.suppress(Exception):
                    attempt.losses(run, model)
            else:
                attempt.losses(run, model)
            after = _state(model)
            for what, value in before.items():
                if value != after[what]:
                    raise Broken(
                        expected=f"{what} as before: {value}",
                        got=after[what],
                        **({"after": "a forward pass that raised"} if hook else {}),
                    )


@check(EVALUATOR)
def deaf_models_are_refused(evaluator: LossFunction) -> None:
    """A model that ignores position_ids is refused, or evaluated right all the same.

    Guards against families such as BLOOM and MPT, which take position_ids and do nothing with them:
    positions drift although the evaluator passed the true ones.
    """
    with attempting(evaluator) as attempt:
        run = attempt.run(47, 0.5, 32, "llama_deaf_to_positions")
        losses, _ = attempt.losses_or_refusal(run)
        if losses is not None:
            attempt.compare(run, definition(evaluator.claims, run._replace(model="llama")), losses)


def _state(model: Any) -> dict[str, str]:
    modules = dict(model.named_modules())
    hooks = [
        name
        for name, module in modules.items()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        for _ in getattr(module, kind)
    ]
    weights = {name: float(tensor.double().sum()) for name, tensor in model.state_dict().items()}
    return {
        "attention implementation": str(model.config._attn_implementation),
        "training mode": f"on in {sum(module.training for module in modules.values())} of {len(modules)} modules",
        "hooks": f"{len(hooks)}",
        "replaced methods": str(
            sorted(f"{name}.forward" for name, module in modules.items() if "forward" in vars(module))
        ),
        "configuration": str(sorted(model.config.to_dict().items(), key=str)),
        "gradients": f"wanted by {sum(p.requires_grad for p in model.parameters())} parameters",
        "weights": str(weights),
    }


def _fail(*args: Any) -> None:
    raise RuntimeError("a forward pass that fails on purpose")
