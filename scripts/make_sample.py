"""Make the shipped sample: 2,000 chat requests at 5 a second, as a log that anyone may read, print and replay.

Usage: python scripts/make_sample.py [FILE]    (default: the file inside the package; the same bytes every time)
"""

from __future__ import annotations

import sys
from pathlib import Path

from gambrel.traffic import profile, write_workload
from gambrel.traffic.load import SAMPLE_SPEC

SHIPPED = Path(__file__).resolve().parents[1] / "src" / "gambrel" / "traffic" / "data" / "sample.csv.gz"


def main(arguments: list[str]) -> None:
    """Write the sample."""
    path = Path(arguments[0]) if arguments else SHIPPED
    write_workload(profile(SAMPLE_SPEC), path)
    print(f"{path.name}: {SAMPLE_SPEC}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
