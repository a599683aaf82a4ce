"""A binary heap of (time, row) in two arrays: the earliest first, equals by row, whatever the order of the pushes."""

from __future__ import annotations

from typing import Any

from gambrel.engine.compiled import compiled

__all__ = ["pop", "push"]


@compiled()
def push(wake_s: Any, wake_row: Any, size: int, time: float, row: int) -> int:
    """Add a row to the binary heap of wakes, the earliest first, equals by row; the new size."""
    i = size
    while i > 0:
        up = (i - 1) >> 1
        if wake_s[up] < time or (wake_s[up] == time and wake_row[up] < row):
            break
        wake_s[i] = wake_s[up]
        wake_row[i] = wake_row[up]
        i = up
    wake_s[i] = time
    wake_row[i] = row
    return size + 1


@compiled()
def pop(wake_s: Any, wake_row: Any, size: int) -> int:
    """Take the first of the heap off it; the new size."""
    size -= 1
    time = wake_s[size]
    row = wake_row[size]
    i = 0
    while True:
        j = 2 * i + 1
        if j >= size:
            break
        if j + 1 < size and (
            wake_s[j + 1] < wake_s[j] or (wake_s[j + 1] == wake_s[j] and wake_row[j + 1] < wake_row[j])
        ):
            j += 1
        if time < wake_s[j] or (time == wake_s[j] and row < wake_row[j]):
            break
        wake_s[i] = wake_s[j]
        wake_row[i] = wake_row[j]
        i = j
    wake_s[i] = time
    wake_row[i] = row
    return size
