"""The ledger: published claims, each with a verdict that follows from measured tables and from nothing else.

A claim is an entry of a TOML file (``baselines/claims/``) that names a check and its arguments; `load_claims`
reads them, `judge` computes a `knorm_core.results.records.Verdict` for each from the tables of a `Results`. No verdict
is ever written by hand: the files hold what was claimed, `knorm_core.claims.checks` reads the tables,
`knorm_core.claims.rules` decides, and `knorm_core.claims.judgement` puts it into words.
"""

from knorm_core.claims import observation_checks, perplexity_checks  # each check registers itself
from knorm_core.claims.judgement import judge
from knorm_core.claims.loading import ANY_MODEL, Claim, ClaimError, Fault, load_claims

__all__ = [
    "ANY_MODEL",
    "Claim",
    "ClaimError",
    "Fault",
    "judge",
    "load_claims",
    "observation_checks",
    "perplexity_checks",
]
