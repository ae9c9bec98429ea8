"""A pytest plugin: the report's figures are those that a test planted with the stand-in's model."""

import json
import os

from knorm_core.experiments import identification
from knorm_core.experiments.report_figures import Figures

if "KNORM_PLANTED" in os.environ:
    _planted = json.loads(os.environ["KNORM_PLANTED"])
    _tables = {name: {(column, ratio): ppl for column, ratio, ppl in _planted.pop(name)} for name in ("final", "early")}
    _mixtures = {tuple(mixture): dict(ppls) for mixture, ppls in _planted.pop("mixtures")}
    identification.REPORT_FIGURES = Figures(**_planted, **_tables, mixtures=_mixtures)
