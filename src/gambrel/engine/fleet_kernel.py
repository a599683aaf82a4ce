"""Replicas that come and go, and requests that wait for others to end: the loop of a fleet, up to a given time.

The most general of the loops, so the slowest: arrivals are known beforehand, or made by the end of the turn before
(plus a pause), or by the loss of a replica; replicas may be up or not; whoever arrives while none is up is held.
Between two calls the caller may start, stop and lose replicas. In a fleet that never changes the rules of
:mod:`gambrel.engine.routing_kernel` choose, so it serves the bytes of a plain replay.

As in a closed loop, where ends make arrivals the replica whose next step begins first goes first, and stops where a
request ends. Where they do not, replicas run ahead to the next arrival that looks at them. The engine's ``arrival`` is
when a request was handed to its replica; when it was sent first, ``asked``, is kept apart.

The columns pass through as three tuples, so that this loop need not know them one by one. This module imports numba;
import it only where a simulation starts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gambrel.core.step import pairs_within, step_parts
from gambrel.engine.autoscaling_kernel import kpa
from gambrel.engine.compiled import compiled
from gambrel.engine.heap_kernel import pop, push
from gambrel.engine.kernel import advance, sample
from gambrel.engine.routing_kernel import choose, hand_over, outstanding
from gambrel.engine.state import (
    CLOCK,
    DECODES,
    FINISHED,
    FREE_BLOCKS,
    FREE_SLOTS,
    LEAST,
    NEVER,
    NEXT,
    PARTIAL,
    POWER,
    PREEMPTED,
    REQUEST,
    SPARE,
)

__all__ = [
    "NUM_CURSOR",
    "NUM_HELD",
    "NUM_SENT",
    "NUM_WAKES",
    "RELEASED",
    "STICKY",
    "TURNS",
    "pick",
    "serve_until",
    "watch",
]

TURNS, STICKY = -1, -2  # rules that look at nothing, beside those of the state

ALONE, ASKED, KPA = range(
    3
)  # who decides how many replicas there are: nobody, the caller at every look, Knative's rule

# Places in the cursor.
(
    RELEASED,  # rows of the line that have arrived
    NUM_WAKES,  # rows that arrive at a time made here
    NUM_HELD,  # rows that wait for a replica to be up
    CHOICE,  # replica chosen last
    NUM_SENT,  # rows handed to a replica so far, again after a loss
    NUM_CURSOR,
) = range(6)


@compiled(outstanding)
def pick(
    rule: int, i: int, now: float, turn: int, num_up: int, up: Any, draws: Any, home: Any, key: Any,
    counts: Any, ints: Any, floats: Any,
) -> int:  # fmt: skip
    """The replica for request ``i`` among those that are up, of which there is at least one.

    Turns, and equals of the rules that look, begin with replica ``turn``. A session goes where it went, ``home``
    int64[sessions] by its ``key`` int64[n], while that is up; then to the next in turn. Power of two draws from
    ``draws`` int64[n, 2] of a large range.
    """
    replicas = len(counts)
    if rule == STICKY:
        r = home[key[i]]
        if r >= 0 and up[r]:
            return int(r)
    one = -1
    two = -1
    if rule == POWER:
        one = draws[i, 0] % num_up
        two = (one + 1 + draws[i, 1] % max(num_up - 1, 1)) % num_up
    found = -1
    fewest = -1
    seen = 0
    for k in range(turn, turn + replicas):
        r = k % replicas if rule != POWER else k - turn
        if not up[r]:
            continue
        if rule < 0:
            return int(r)
        seen += 1
        if rule == POWER and seen - 1 != one and seen - 1 != two:
            continue
        number = outstanding(r, now, counts, ints, floats)
        if fewest < 0 or number < fewest or (number == fewest and rule == POWER and seen - 1 == one):
            fewest = number
            found = r
    return int(found)


@compiled(step_parts, pairs_within, sample, advance, push, pop, outstanding, choose, hand_over, pick)
def serve_until(
    until: float, chained: bool, plain: bool, rule: int, cursor: Any, line: Any, asked: Any, nexts: Any, think: Any,
    wake_s: Any, wake_row: Any, held: Any, was_held: Any, order: Any, up: Any, key: Any, home: Any,
    draws: Any, sent: Any, memory: Any, assigned: Any, counts: Any, ends: Any,
    block_size: int, arrival: Any, prompt: Any, follow: Any, last: Any, units: Any, unit_offsets: Any, unit_sizes: Any,
    ints: Any, floats: Any, slots: Any, costs: Any, columns: Any, places: Any,
) -> None:  # fmt: skip
    """Serve what arrives before ``until`` and run every step that begins before it.

    ``line`` int64[m] rows that arrive by themselves, at ``asked`` float64[n] seconds, which is filled for the others.
    ``nexts`` int64[n] the row sent ``think`` float64[n] seconds after this one's end, -1 for none; ``chained`` if there
    are any. ``plain``: all replicas are up for good, and the plain rules choose. ``wake_s``, ``wake_row``: the heap of
    rows that arrive at a time made here. ``held`` int64[n] rows that
    found no replica ``up`` bool[replicas], in order; ``was_held`` bool[n]. ``order`` int64[n]: how many were handed
    out before this one. Others as in :func:`gambrel.engine.routing_kernel.serve_open` and :func:`pick`.
    """
    replicas = len(counts)
    num_up = 0
    for r in range(replicas):
        if up[r]:
            num_up += 1
    while True:
        row = -1
        due = NEVER
        if cursor[RELEASED] < len(line):
            row = line[cursor[RELEASED]]
            due = asked[row]
        waking = cursor[NUM_WAKES] > 0 and (wake_s[0] < due or (wake_s[0] == due and wake_row[0] < row))
        if waking:
            row = wake_row[0]
            due = wake_s[0]
        stop = min(due, until)
        looks = num_up if rule == LEAST or rule > POWER else 0
        if rule == POWER and row >= 0:
            looks = num_up
        if chained:
            # Whose step begins first, and when the next of the others does.
            earliest = -1
            begins = NEVER
            second = NEVER
            for r in range(replicas):
                if counts[r] == ints[r, FINISHED]:
                    continue
                start = floats[r, CLOCK]
                if ints[r, DECODES] == 0 and ints[r, PARTIAL] < 0 and ints[r, PREEMPTED] == 0:
                    start = max(start, arrival[ints[r, NEXT]])
                if start < begins:
                    second = begins
                    begins = start
                    earliest = r
                elif start < second:
                    second = start
            if earliest >= 0 and begins < stop:
                r = earliest
                before = ints[r, FINISHED]
                advance(r, min(stop, max(second, np.nextafter(begins, NEVER))), True, *costs, *columns, *places)
                for k in range(ints[r, FINISHED] - before):
                    # The slots freed last are those of the requests that ended last.
                    i = slots[r, REQUEST, slots[r, SPARE, ints[r, FREE_SLOTS] - 1 - k]]
                    if nexts[i] >= 0:
                        asked[nexts[i]] = last[i] + think[i]
                        cursor[NUM_WAKES] = push(wake_s, wake_row, cursor[NUM_WAKES], asked[nexts[i]], nexts[i])
                continue
        elif due >= until or looks > 0:
            for r in range(replicas):
                if counts[r] > ints[r, FINISHED] and floats[r, CLOCK] < stop:
                    advance(r, stop, False, *costs, *columns, *places)
        if due >= until or row < 0:
            break
        if waking:
            cursor[NUM_WAKES] = pop(wake_s, wake_row, cursor[NUM_WAKES])
        else:
            cursor[RELEASED] += 1
        if num_up == 0:
            held[cursor[NUM_HELD]] = row
            cursor[NUM_HELD] += 1
            was_held[row] = True
            continue
        arrival[row] = due
        turn = cursor[CHOICE] + 1
        if rule >= 0 and plain:
            choice = choose(
                rule, row, due, turn, block_size, draws, sent, memory, counts,
                prompt, units, unit_offsets, unit_sizes, ints, floats,
            )  # fmt: skip
        else:
            choice = pick(rule, row, due, turn, num_up, up, draws, home, key, counts, ints, floats)
        if rule != STICKY or home[key[row]] != choice:
            cursor[CHOICE] = choice
        if rule == STICKY:
            home[key[row]] = choice
        assigned[row] = choice
        order[row] = cursor[NUM_SENT]
        cursor[NUM_SENT] += 1
        hand_over(row, choice, counts, ends, follow, ints)


@compiled(serve_until, kpa)
def watch(
    first: int, origin: float, every: float, event: float, horizon: float, decides: int, by_blocks: bool,
    ready: Any, starting: int, leaving: Any, num_kv_blocks: int, rows: Any, seen: Any, rule: Any,
    num_requests: int, counts: Any, ints: Any, floats: Any, cursor: Any, served: Any,
) -> Any:  # fmt: skip
    """Serve, and look at ``origin`` and every so many seconds from there on, until there is something to do.

    That is at an ``event`` or, when all have ended, the ``horizon``, before a look there; or after a look, if a replica
    that was told to leave is empty, the caller ``decides`` (ASKED) or Knative's rule (KPA) wants other than there is.
    ``first`` is the number of the next look. ``ready`` int64[k] replicas that stay, in order, beside those that are
    ``starting``; ``leaving`` int64[k] others. Each look is a row of ``rows`` float64[m, 7]: time, ready, starting,
    leaving, requests in flight, held, KV usage; what the rule saw of the last is in ``seen`` float64[2]: the metric, in
    all, KV usage if ``by_blocks``, and whether there is work. ``rule`` is that of
    :func:`gambrel.engine.autoscaling_kernel.kpa`, ``served`` what :func:`serve_until` takes behind the time.
    Returns how many looks there were, whether the last of them waits for the caller, and how many replicas are wanted.
    """
    number = 0
    wanted = len(ready) + starting
    while number < len(rows):
        now = origin + (first + number) * every
        serve_until(min(now, event), *served)
        in_flight = 0
        finished = 0
        for r in range(len(counts)):
            in_flight += counts[r] - ints[r, FINISHED]
            finished += ints[r, FINISHED]
        if event <= now or (finished == num_requests and now >= horizon):
            return number, False, wanted
        held = cursor[NUM_HELD]
        work = held
        usage = 0.0
        for r in ready:
            work += counts[r] - ints[r, FINISHED]
            usage += 1.0 - ints[r, FREE_BLOCKS] / num_kv_blocks
        staying = 0
        for r in leaving:
            if counts[r] > ints[r, FINISHED] or floats[r, CLOCK] > now:
                staying += 1
        rows[number, 0] = now
        rows[number, 1] = len(ready)
        rows[number, 2] = starting
        rows[number, 3] = staying
        rows[number, 4] = in_flight + held
        rows[number, 5] = held
        rows[number, 6] = usage / len(ready) if len(ready) > 0 else 0.0
        number += 1
        seen[0] = usage if by_blocks else work
        seen[1] = work > 0
        if decides == KPA:
            wanted = kpa(now, len(ready), starting, seen[0], work > 0, *rule)
        if decides == ASKED or staying < len(leaving) or wanted != len(ready) + starting:
            return number, True, wanted
    return number, True, wanted
