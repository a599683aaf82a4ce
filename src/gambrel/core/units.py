"""The few unit factors that the insides need: SI in memory, human units only at the rim.

GB is 1e9 bytes and GiB is 2**30; published tables mix them, and the difference is 7 %.
"""

from __future__ import annotations

from typing import Final

__all__ = ["GB", "GIB", "HOURS_PER_MONTH", "KIB", "MIB", "MS", "SECONDS_PER_HOUR", "TERA", "US"]

GB: Final = 1e9
KIB: Final = 2**10
MIB: Final = 2**20
GIB: Final = 2**30
TERA: Final = 1e12
MS: Final = 1e-3
US: Final = 1e-6
SECONDS_PER_HOUR: Final = 3600.0
HOURS_PER_MONTH: Final = 730.0  # 8,760 / 12
