"""Write docs/accuracy.md: every published measurement at hand, predicted with the shipped constants and compared.

Usage: ``python scripts/accuracy.py [DIRECTORY] [--out FILE]`` where DIRECTORY holds the ground-truth tables and
``traces/`` (default ``../shared/data/ground_truth``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gambrel.calibrate.accuracy import accuracy_page
from gambrel.calibrate.carried import carried
from gambrel.calibrate.names import Models
from gambrel.calibrate.published import validate_tables
from gambrel.calibrate.replay import replays_beside
from gambrel.calibrate.table import read_table

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?", default=ROOT.parent / "shared" / "data" / "ground_truth")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "accuracy.md")
    arguments = parser.parse_args()
    tables = sorted(arguments.directory.glob("*.csv"))
    found = validate_tables(tables)
    carries = carried((row for table in tables for row in read_table(table)), Models(), print)
    arguments.out.write_text(accuracy_page(found, replays_beside(tables), carries=carries), encoding="utf-8")
    for (metric,), e in found.by(lambda c: (c.metric,)).items():
        print(f"{metric}: {e.n} figures, median {e.median_ape:.1%}, p90 {e.p90_ape:.0%}, in 80 % {e.coverage:.0%}")


if __name__ == "__main__":
    main()
