"""Print the figures that a profile needs, from a trace: how data/profiles.toml of the traffic room was made.

Usage: python scripts/trace_quantiles.py TRACE...
"""

from __future__ import annotations

import sys

import numpy as np

from gambrel.traffic import describe, read_workload

LEVELS = (0.0, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 85.0, 90.0, 95.0, 97.0, 98.0, 99.0, 99.9, 100.0)


def main(paths: list[str]) -> None:
    """One block of TOML for every trace: observed lengths at each level, rank correlation, CV of the gaps."""
    for path in paths:
        workload = read_workload(path)
        figures = describe(workload)
        print(f"# {workload.name}")
        for name, lengths in (("prompt", workload.prompt_tokens), ("output", workload.output_tokens)):
            found = np.percentile(lengths, LEVELS, method="nearest").tolist()
            print(f"{name} = {{ " + ", ".join(f'"p{p:g}" = {v}' for p, v in zip(LEVELS, found, strict=True)) + " }")
        print(f"correlation = {figures.correlation:.2f}")
        print(f"requests = {len(workload)}")
        print(f"# cv {figures.cv:.2f}, over one-minute windows {figures.cv_1min[0]:.2f} (median)")
        print(f"# means: {workload.prompt_tokens.mean():.0f}, {workload.output_tokens.mean():.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
