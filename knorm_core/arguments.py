"""The arguments of `evaluate`: their defaults, their meaning, and the checks that turn them into a setting."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, TypeVar

from knorm_core.cache import check_skip_layers
from knorm_core.counts import WHEN, check_choice, check_flag, check_int, check_keep_ratio, effective_prune_after
from knorm_core.division import divided_budget, divided_ratio
from knorm_core.policy import Policy
from knorm_core.policy_names import find_policy
from knorm_core.selection import UNPROTECTED, Protection
from knorm_core.setting import NoEvictionError, ProtectedKeysError, Setting, UnsupportedModelError

POSITIONS = ("absolute", "cache", "rerotated")
METHODS = ("onepass", "stepwise")
SCORE_FROM = ("phase2", "start")


Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Arguments:
    """The arguments of `knorm_core.evaluate` besides model and text, with their defaults.

    Attributes:
        keep_ratio: share of keys that an eviction keeps, in (0, 1]; 1 never evicts. Or one per layer. Some policies
            (pyramidkv) divide it among the layers themselves.
        prune_after: cache length in tokens from which a layer is compressed.
        positions: "absolute" feeds token i with position i; "cache" with the length of layer 0's cache,
            as transformers does when nobody passes positions; "rerotated" the same, with the survivors of
            every eviction rotated to positions 0 … k-1 (see `knorm_core.methods.rotation`).
        policy: which keys stay: a name in `knorm_core.POLICIES`, an instance of a subclass of
            `knorm_core.Policy`, or "package.module:Name" of one.
        sinks: first tokens of the text that no eviction takes, with any policy.
        recent: latest tokens that no eviction takes. Both count towards what an eviction keeps.
        compressor: a callable with the arguments of `l2_compress`, in place of a policy; it implies
            ``method="stepwise"``. It takes a `DynamicCache` or a list of (key, value) pairs, and returns
            one, or None where it changes the one it is given.
        skip_layers: layers to leave uncompressed.
        when: "every_step"; "after_prefill", once before the first token of phase 2, as kvpress does;
            "fixed_budget", one key before each token, so that the cache never exceeds ``budget``.
        budget: cache length in tokens, with ``when="fixed_budget"`` (then without ``keep_ratio``). Or one per
            layer: phase 1 fills the largest, and the first eviction takes the others down to theirs.
        first_eviction_after: tokens of phase 2 that are fed before the first eviction. With 1 that eviction
            finds P+1 keys, as where a loop feeds and then compresses; every later one comes at P keys.
        adjust: lower ``prune_after`` to fit the text (see `effective_prune_after`). False takes it as given.
        score_from: "phase2", or "start" to score from token 1 on as the paper does.
        allow_no_eviction: accept an evaluation in which nothing was evicted.
        seed: of the policy "random", where it is given by name.
        method: "onepass", or "stepwise", its oracle. A model that one pass cannot serve but a real cache
            can is evaluated stepwise, with a `SlowFallbackWarning`; ``Evaluation.method`` says what ran.
    """

    keep_ratio: float | Sequence[float] | None = None
    prune_after: int = 256
    positions: str = "absolute"
    policy: str | Policy = "low_norm"
    sinks: int = 0
    recent: int = 0
    compressor: Callable[..., Any] | None = None
    skip_layers: Iterable[int] = ()
    when: str = "every_step"
    budget: int | Sequence[int] | None = None
    first_eviction_after: int = 0
    adjust: bool = True
    score_from: str = "phase2"
    allow_no_eviction: bool = False
    seed: int = 0
    method: str = "onepass"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Arguments:
        """Arguments by name.

        Raises:
            TypeError: there is no argument of that name.
        """
        names = [field.name for field in fields(cls)]
        if "window" in given:
            raise TypeError("evaluate's window is called recent now, and goes with every policy and every when")
        for name in given:
            if name not in names:
                raise TypeError(f"evaluate has no argument {name!r}: it takes {', '.join(names)}")
        return cls(**given)


def takes_arguments(function: Function) -> Function:
    """Give a function of ``**arguments`` the signature of `Arguments` and its documentation of each."""
    given = inspect.signature(function)
    names = [p for p in given.parameters.values() if p.kind is not p.VAR_KEYWORD]
    each = inspect.signature(Arguments).parameters.values()
    asked = [p.replace(kind=p.KEYWORD_ONLY) for p in each if p.name not in given.parameters]
    function.__signature__ = given.replace(parameters=[*names, *asked])  # type: ignore[attr-defined]
    if function.__doc__ and Arguments.__doc__:  # python -OO has none
        documented = Arguments.__doc__.partition("Attributes:\n")[2].rstrip()
        function.__doc__ = function.__doc__.replace("        **arguments: see `Arguments`.", documented)
    return function


def check_setting(
    arguments: Arguments, *, seq_len: int, layers: int, sliding: Mapping[int, int], first_position: int = 0
) -> Setting:
    """The arguments of one evaluation, checked and spelled out.

    Args:
        arguments: what is asked.
        seq_len: tokens of the text.
        layers: of the model.
        sliding: window length of every layer that has one.
        first_position: what the model counts positions from.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, its value and what is allowed.
        UnsupportedModelError: (a ValueError) layers like these cannot be evaluated in this way.
    """
    check_choice("positions", arguments.positions, POSITIONS)
    check_choice("when", arguments.when, WHEN)
    check_choice("score_from", arguments.score_from, SCORE_FROM)
    check_choice("method", arguments.method, METHODS)
    check_int("prune_after", arguments.prune_after, 1)
    check_int("seed", arguments.seed, 0)
    check_int("first_eviction_after", arguments.first_eviction_after, 0)
    check_flag("adjust", arguments.adjust)
    check_flag("allow_no_eviction", arguments.allow_no_eviction)
    policy = find_policy(arguments.policy, arguments.seed)
    if arguments.compressor is not None and not callable(arguments.compressor):
        raise TypeError(f"compressor={arguments.compressor!r} is not callable")
    skip_layers = check_skip_layers(arguments.skip_layers, layers)
    compressed = [layer for layer in range(layers) if layer not in skip_layers | sliding.keys()]
    ratio = budget = None
    if arguments.when == "fixed_budget":
        budget = divided_budget(policy, _check_budget(arguments, layers), compressed, most=seq_len - 2)
        start = max(budget)
    else:
        ratio = _check_ratio(arguments, layers)
        start = effective_prune_after(seq_len, arguments.prune_after) if arguments.adjust else arguments.prune_after
        if arguments.compressor is None:
            ratio = divided_ratio(policy, ratio, compressed, start, once=arguments.when == "after_prefill")
    first_scored = 1 if arguments.score_from == "start" else start + 1
    if first_scored >= seq_len:
        raise NoEvictionError(
            f"prune_after={arguments.prune_after} with adjust={arguments.adjust} leaves phase 2 of a text of {seq_len} "
            f"tokens empty: nothing would be evicted and nothing scored; use adjust=True, or a prune_after of at most "
            f"{seq_len - 2}"
        )
    setting = Setting(
        seq_len=seq_len,
        layers=layers,
        start=start,
        keep_ratio=ratio,
        budget=budget,
        positions=arguments.positions,
        policy=policy,
        protection=_check_protection(arguments, policy),
        skip_layers=skip_layers,
        sliding=sliding,
        when=arguments.when,
        first_eviction_after=arguments.first_eviction_after,
        first_scored=first_scored,
        method="stepwise" if arguments.compressor is not None else arguments.method,
        compressor=arguments.compressor,
        allow_no_eviction=arguments.allow_no_eviction,
        first_position=first_position,
    )
    if setting.positions == "rerotated":
        _check_rerotated(setting)
    if len(setting.skip_layers | setting.sliding.keys()) == layers:
        raise ValueError(
            f"no layer is left to compress: skip_layers={sorted(setting.skip_layers)}, "
            f"sliding-window layers={sorted(setting.sliding)}, of {layers} layers; a window bounds a cache already"
        )
    _check_room(setting)
    if setting.compressor is None:
        # Our own evictions are known in advance, so an evaluation without any is refused before it runs.
        setting.check_evictions(setting.schedules)
    return setting


def _check_ratio(arguments: Arguments, layers: int) -> tuple[Fraction, ...]:
    if arguments.budget is not None:
        raise ValueError(f"budget={arguments.budget!r} goes with when='fixed_budget', not when={arguments.when!r}")
    if arguments.keep_ratio is None:
        raise TypeError("keep_ratio=None is not a number: give one in (0, 1]")
    if arguments.compressor is not None:
        return (check_keep_ratio(arguments.keep_ratio),) * layers
    return tuple(check_keep_ratio(ratio) for ratio in _per_layer("keep_ratio", arguments.keep_ratio, layers))


def _check_budget(arguments: Arguments, layers: int) -> tuple[int, ...]:
    if arguments.keep_ratio is not None:
        raise ValueError(
            f"keep_ratio={arguments.keep_ratio!r} has no meaning with when='fixed_budget': give budget alone"
        )
    if arguments.compressor is not None:
        raise ValueError("compressor does not go with when='fixed_budget': give a policy")
    return tuple(check_int("budget", budget, 1) for budget in _per_layer("budget", arguments.budget, layers))


def _per_layer(name: str, value: Any, layers: int) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * layers
    if len(value) != layers:
        raise ValueError(
            f"{name}={list(value)!r} has {len(value)} values: give one, or one for each of {layers} layers"
        )
    return value


def _check_protection(arguments: Arguments, policy: Policy) -> Protection:
    given = Protection(check_int("sinks", arguments.sinks, 0), check_int("recent", arguments.recent, 0))
    if arguments.compressor is None:
        return Protection(max(given.sinks, policy.sinks), max(given.recent, policy.recent))
    if given != UNPROTECTED:
        raise ValueError(
            f"sinks={given.sinks} and recent={given.recent} go with a policy: compressor alone decides who stays"
        )
    return given


def _check_room(setting: Setting) -> None:
    """Refuse to protect more keys than an eviction keeps."""
    sinks, recent = setting.protection
    for layer, schedule in enumerate(setting.schedules):
        for _, before, after in schedule:
            if sinks + recent > after:
                asked = f"budget={setting.budget[layer]}" if setting.budget else f"keep_ratio={setting.given_ratio}"
                own = setting.policy.sinks == sinks > 0 or setting.policy.recent == recent > 0
                whose = f" of policy {setting.policy!r}" if own else ""
                raise ProtectedKeysError(
                    f"sinks={sinks} and recent={recent}{whose} protect {sinks + recent} keys, and {asked} keeps "
                    f"{after} of {before}: protect fewer, or keep more"
                )


def _check_rerotated(setting: Setting) -> None:
    # Survivors move to 0 … k-1 and the next token follows them: only with one k for all layers is there one next.
    if setting.compressor is not None:
        raise ValueError("compressor does not go with positions='rerotated': it does not say who survived")
    if setting.skip_layers:
        raise ValueError(
            f"skip_layers={sorted(setting.skip_layers)} does not go with positions='rerotated': layers of unequal "
            f"length have no position in common for the next token"
        )
    if len(set(setting.schedules)) > 1:
        what = (
            f"policy {setting.policy!r}, which keeps more in some layers than in others,"
            if setting.policy.divides
            else "keep_ratio or budget by layer"
        )
        raise ValueError(
            f"{what} does not go with positions='rerotated': layers of unequal length have no position in common for "
            f"the next token"
        )
    if setting.sliding:
        raise UnsupportedModelError(
            f"positions='rerotated' needs layers of equal length, and layers {sorted(setting.sliding)} have a "
            f"sliding window: use 'absolute'"
        )


def asked_to_compress(keep_ratio: Fraction | float | None) -> bool:
    """Whether a keep ratio asks for evictions; None stands for a fixed budget, which does."""
    return keep_ratio is None or check_keep_ratio(keep_ratio) < 1
