"""Pins for the stand-in: imported by a process that is to take what the stand-in serves for the real thing.

Also a pytest plugin (``-p suites.hub.stand_in_pins``), so that the workers of xdist import it too. The pins
come in the environment, as JSON: {repository: {file: SHA-256}}, and the SHA-256 of Wikitext's rows. Without
them, as where pytest looks for doctests here, nothing is changed.
"""

import json
import os

from knorm_core.inputs import hub

for _name, _sha256 in json.loads(os.environ.get("KNORM_STAND_IN_PINS", "{}")).items():
    hub.PINNED[_name] = hub.PINNED[_name]._replace(sha256=_sha256)

if "KNORM_STAND_IN_WIKITEXT" in os.environ:
    from knorm_core.inputs import text_sources

    text_sources.WIKITEXT_SHA256 = os.environ["KNORM_STAND_IN_WIKITEXT"]
