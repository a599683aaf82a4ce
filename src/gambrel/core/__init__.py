"""The vocabulary: what a model, an accelerator, a deployment, a workload, a step, a run and an SLO *are*.

Frozen types and the formulas that belong to them; no file, network or console, numpy at most.
"""

from __future__ import annotations
