"""Prefix caching: the kernel on runs of blocks against the oracle on single blocks, its laws, and published ratios."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_cases import POLICIES, Case, affine_table, cases, hashed, poisson
from gambrel.core.workload import Ints, Workload
from gambrel.engine import ROUTINGS, Limits, Replicas, Requests, replay, run_replica
from gambrel.engine import state as at
from gambrel.engine.prefixes import Prefixes
from test_engine_laws import assert_same


@st.composite
def shared(draw: st.DrawFn) -> Case:
    """A case whose prompts, and some answers, follow paths of a small tree; hashes chained or not, of any size."""
    case = draw(cases(POLICIES, state=True))
    workload = case.workload
    granule = draw(st.sampled_from([1, 2, 3, 5, 16]))
    chained = draw(st.booleans())
    answers = draw(st.booleans())
    turns = draw(st.lists(st.integers(0, 30), min_size=1, max_size=4))
    rows = []
    for prompt, output in zip(workload.prompt_tokens, workload.output_tokens, strict=True):
        tokens = int(prompt) + (int(output) - 1 if answers and draw(st.booleans()) else 0)
        num = -(-tokens // granule)
        if draw(st.booleans()):
            num = draw(st.integers(0, num))
        turn = draw(st.sampled_from(turns))  # where this row leaves the common path, and how
        way = draw(st.integers(1, 2))
        path = [0 if k < turn else way for k in range(num)]
        if chained:
            path = [hash((way if k >= turn else 0, min(k, turn), k)) for k in range(num)]
        rows.append(path)
    limits = replace(case.limits, prefix_caching=True)
    return replace(case, workload=hashed(workload, rows, granule), limits=limits)


@given(shared())
@settings(max_examples=600)
def test_fast_equals_naive(case: Case) -> None:
    fast = replay(case.table, case.limits, case.workload)
    naive = replay(case.table, case.limits, case.workload, oracle=True)
    assert_same(fast, naive)
    assert np.array_equal(fast.requests.cached, naive.requests.cached)


@given(shared())
@settings(max_examples=300)
def test_laws(case: Case) -> None:
    """Blocks are conserved, held ones are not handed out, and a hit is whole blocks short of the last token."""
    n = len(case.workload)
    requests = Requests.of(case.workload, Prefixes.of(case.workload, case.limits.block_size))
    replica = Replicas.of(case.limits, requests, windowed=case.table.window > 0)
    replica.line_up(requests, np.arange(n))
    run_replica(case.table, case.limits, requests, replica)
    ints, cache = replica.ints[0], replica.cache[0]
    assert ints[at.FINISHED] == n
    assert ints[at.FREE_BLOCKS] == case.limits.num_kv_blocks
    assert not cache[at.REFS].any()
    queue, blocks, before = [], 0, -1
    node = ints[at.OLDEST]
    while node >= 0:
        assert cache[at.OLDER, node] == before
        assert cache[at.COUNT, node] > 0
        queue.append(node)
        blocks += cache[at.COUNT, node]
        before, node = node, cache[at.NEWER, node]
    assert before == ints[at.NEWEST]
    assert blocks + ints[at.BLANK] == case.limits.num_kv_blocks
    assert len(set(queue)) == len(queue)
    nameless = np.array(queue) >= ints[at.ANONYMOUS]
    assert not (nameless[1:] & nameless[:-1]).any()
    # units that are cached have the units before them cached whole
    sizes = requests.prefixes.sizes
    for i in range(n):
        units = requests.prefixes.units[requests.prefixes.offsets[i] : requests.prefixes.offsets[i + 1]]
        counts = cache[at.COUNT, units]
        assert (counts <= sizes[units]).all()
        assert (counts[:-1][counts[1:] > 0] == sizes[units][:-1][counts[1:] > 0]).all()
    assert (requests.cached % case.limits.block_size == 0).all()
    assert ((requests.cached >= 0) & (requests.cached < requests.prompt)).all()
    assert (np.diff(requests.scheduled) >= 0).all()


@given(shared(), st.integers(1, 3), st.sampled_from(sorted(ROUTINGS)))
@settings(max_examples=80)
def test_replicas_keep_caches_of_their_own(case: Case, replicas: int, routing: str) -> None:
    fast, naive = (
        replay(case.table, case.limits, case.workload, replicas=replicas, routing=routing, oracle=oracle)
        for oracle in (False, True)
    )
    for column in ("scheduled", "first", "last", "preemptions", "cached"):
        assert getattr(fast.requests, column).tobytes() == getattr(naive.requests, column).tobytes(), column


def by_tokens(workload: Workload, block_size: int) -> tuple[Ints, list[tuple[int, ...]]]:
    """What an infinite cache holds of each prompt, one request after the other, written out token by token."""
    assert workload.prefix_offsets is not None
    assert workload.prefix_blocks is not None
    known: set[tuple[int, ...]] = set()
    found = np.zeros(len(workload), np.int64)
    paths = []
    for i, prompt in enumerate(workload.prompt_tokens):
        hashes = workload.prefix_blocks[workload.prefix_offsets[i] : workload.prefix_offsets[i + 1]]
        hashes = hashes[: -(-int(prompt) // workload.prefix_block_tokens)]
        token = 0
        path: tuple[int, ...] = ()
        blocks = 0
        for k, value in enumerate(hashes):
            path = (*path, int(value))
            if path not in known:
                break
            token = min((k + 1) * workload.prefix_block_tokens, int(prompt))
            blocks = token // block_size
        for k in range(len(hashes)):
            known.add(tuple(int(h) for h in hashes[: k + 1]))
        found[i] = min(blocks, (int(prompt) - 1) // block_size) * block_size
        paths.append(path)
    return found, paths


@pytest.mark.parametrize("block_size", [1, 4, 16, 24])
@pytest.mark.parametrize("granule", [4, 16])
def test_an_endless_cache_finds_every_prefix_seen_before(block_size: int, granule: int) -> None:
    rng = np.random.default_rng(block_size)
    n = 300
    prompt = rng.integers(1, 20, n) * granule  # whole granules, so that equal hashes are equal tokens
    rows = [[0 if k < (i * 7) % 13 else i % 5 for k in range(int(p) // granule)] for i, p in enumerate(prompt)]
    workload = hashed(Workload(np.arange(n, dtype=np.float64), prompt, rng.integers(1, 20, n)), rows, granule)
    limits = Limits(64, 4096, 1_000_000, block_size, prefix_caching=True)
    played = replay(affine_table(4096, 64), limits, workload)
    expected, _ = by_tokens(workload, block_size)
    assert np.array_equal(played.requests.cached, expected)
    assert expected.sum() > 0.3 * prompt.sum()


def test_a_prompt_that_is_all_cached_computes_its_last_block_again() -> None:
    workload = hashed(
        Workload(np.array([0.0, 10.0, 20.0]), np.array([64, 64, 65]), np.ones(3, np.int64)), [[1, 2]] * 3, 32
    )
    played = replay(affine_table(512, 4), Limits(4, 512, 100, 16, prefix_caching=True), workload)
    assert played.requests.cached.tolist() == [0, 48, 64]


def test_the_next_turn_finds_prompt_and_answer() -> None:
    """Turn two's prompt is turn one's prompt, its answer and a new question; the last token was never read back."""
    turns = Workload(np.array([0.0, 10.0]), np.array([40, 100]), np.array([41, 10]))
    workload = hashed(turns, [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7]], 16)
    played = replay(affine_table(512, 4), Limits(4, 512, 100, 16, prefix_caching=True), workload)
    assert played.requests.cached.tolist() == [0, 80]


def test_the_least_recently_used_prefix_goes_first_and_its_tail_before_its_head() -> None:
    """Room for three prompts of four blocks; a fourth takes the blocks of the one not asked for longest."""
    prompts = [
        [10, 11, 12, 13],
        [20, 21, 22, 23],
        [30, 31, 32, 33],
        [10, 11, 12, 13],
        [40, 41, 42],
        [20, 21, 22, 23],
        [10, 11, 12, 13],
    ]
    n = len(prompts)
    workload = hashed(
        Workload(np.arange(0.0, 10.0 * n, 10.0), np.array([len(p) * 16 + 1 for p in prompts]), np.ones(n, np.int64)),
        prompts,
        16,
    )
    # every request needs one block more for its odd token, which has no hash and is handed out first again
    played = replay(affine_table(512, 4), Limits(4, 512, 13, 16, prefix_caching=True), workload)
    assert played.requests.cached.tolist() == [0, 0, 0, 64, 0, 16, 64]


def test_without_memory_a_preempted_request_computes_everything_again_with_it_hardly_anything() -> None:
    """The victim's blocks go to the young end of the queue: older ones go first, so it mostly finds its own again."""
    workload = poisson(600, 60.0, 300, 100)
    table = affine_table(2048, 256)
    plain, caching = (
        replay(table, Limits(256, 2048, 700, prefix_caching=caching), workload) for caching in (False, True)
    )
    for played in (plain, caching):
        assert played.requests.preemptions.sum() > 0
        assert played.requests.cached.sum() == 0  # nothing is shared; only the preempted find their own
    assert caching.floats[at.PREFILL_S] < plain.floats[at.PREFILL_S]


@given(cases(POLICIES), st.integers(1, 3))
@settings(max_examples=100)
def test_where_nothing_is_shared_only_the_preempted_gain(case: Case, replicas: int) -> None:
    """The shortcut past the cache changes nothing."""
    limits = replace(case.limits, prefix_caching=True)
    fast, naive = (
        replay(case.table, limits, case.workload, replicas=replicas, oracle=oracle) for oracle in (False, True)
    )
    for column in ("scheduled", "first", "last", "preemptions", "cached"):
        assert getattr(fast.requests, column).tobytes() == getattr(naive.requests, column).tobytes(), column


def test_sharing_shortens_prefill_and_queue() -> None:
    """A system prompt of 1,024 tokens before every question: the published 6.5 times too long TTFT is its neglect."""
    n = 2000
    rng = np.random.default_rng(0)
    workload = poisson(n, 12.0, 100, 60)
    workload = replace(workload, prompt_tokens=workload.prompt_tokens + 1024)
    rows = [[0] * 64 + list(rng.integers(1, 2**40, -(-int(p) // 16) - 64)) for p in workload.prompt_tokens]
    workload = hashed(workload, rows, 16)
    table = affine_table(2048, 256)
    without, with_cache = (
        replay(table, Limits(256, 2048, 20_000, prefix_caching=caching), workload) for caching in (False, True)
    )
    share = 1024 * (n - 1) / workload.prompt_tokens.sum()
    assert with_cache.requests.cached.sum() / workload.prompt_tokens.sum() == pytest.approx(share, abs=0.01)
    ttft = [float((p.requests.first - p.requests.arrival).mean()) for p in (without, with_cache)]
    assert ttft[1] < 0.5 * ttft[0]


@pytest.mark.shared
@pytest.mark.parametrize(("trace", "ratio"), [("conversation", 0.366), ("synthetic", 0.640)])
def test_the_published_traces_reach_their_ideal_ratio(shared_data: object, trace: str, ratio: float) -> None:
    from pathlib import Path

    from gambrel.traffic import describe, read_workload

    workload = read_workload(Path(str(shared_data)) / "traces" / f"mooncake-fast25-{trace}.jsonl.gz")
    ideal = describe(workload).prefix_reuse
    assert ideal is not None
    assert ideal.hit_ratio == pytest.approx(ratio, abs=5e-4)
    played = replay(affine_table(8192, 256), Limits(256, 8192, 1_500_000_000, 1, prefix_caching=True), workload)
    # in the trace's own blocks of 512 tokens, the last of a prompt counted whole
    found = played.requests.cached + (played.requests.cached == workload.prompt_tokens - 1)
    found = -(-found // 512)
    assert found.sum() / ideal.num_blocks == pytest.approx(ideal.hit_ratio, abs=2e-5)
    # in tokens and engine blocks of 16, as vLLM counts: partial blocks cannot be found, long prompts weigh more
    limits = Limits(256, 8192, 100_000_000, 16, prefix_caching=True)
    counted = replay(affine_table(8192, 256), limits, workload).requests.cached
    assert counted.sum() / workload.prompt_tokens.sum() == pytest.approx(
        {0.366: 0.3736, 0.640: 0.6512}[ratio], abs=5e-5
    )


@given(shared())
@settings(max_examples=150)
def test_units_are_the_blocks_that_rows_have_in_common(case: Case) -> None:
    """Two rows list the same units as far as their hashes agree, in whole blocks, and nothing one alone asks for."""
    workload, size = case.workload, case.limits.block_size
    assert workload.prefix_blocks is not None
    assert workload.prefix_offsets is not None
    prefixes = Prefixes.of(workload, size)
    rows = [prefixes.units[prefixes.offsets[i] : prefixes.offsets[i + 1]] for i in range(len(workload))]
    asked = np.bincount(prefixes.units, minlength=len(prefixes.sizes))
    assert (asked > 1).all()
    assert (prefixes.sizes > 0).all()
    granule = workload.prefix_block_tokens
    for i, mine in enumerate(rows):
        for j in range(i):
            common = 0
            while common < min(len(mine), len(rows[j])) and mine[common] == rows[j][common]:
                common += 1
            assert not set(mine[common:]) & set(rows[j][common:])
            ours, theirs = (
                workload.prefix_blocks[workload.prefix_offsets[k] : workload.prefix_offsets[k + 1]] for k in (i, j)
            )
            same = 0
            while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
                same += 1
            assert prefixes.sizes[mine[:common]].sum() <= same * granule // size


@st.composite
def logs(draw: st.DrawFn) -> tuple[Workload, int]:
    """Rows that branch off earlier ones anywhere, name their answers or not, and an engine block size."""
    granule = draw(st.integers(1, 8))
    rows: list[list[int]] = []
    prompt: list[int] = []
    output: list[int] = []
    for i in range(draw(st.integers(1, 10))):
        prompt.append(draw(st.integers(1, 30)))
        output.append(draw(st.integers(1, 20)))
        known = prompt[i] + draw(st.sampled_from([0, output[i] - 1]))
        base = rows[draw(st.integers(0, i - 1))] if i and draw(st.booleans()) else []
        new = draw(st.lists(st.integers(0, 2), min_size=-(-known // granule), max_size=-(-known // granule)))
        rows.append((base[: draw(st.integers(0, len(base)))] + new)[: len(new)])
    workload = Workload(np.arange(float(len(rows))), np.array(prompt), np.array(output))
    return hashed(workload, rows, granule), draw(st.integers(1, 8))


@given(logs())
@settings(max_examples=300)
def test_units_are_those_of_a_tree_of_single_hashes(drawn: tuple[Workload, int]) -> None:
    """A dictionary of nodes, one a hash; a node joins the one above where the same rows pass both."""
    workload, block_size = drawn
    assert workload.prefix_blocks is not None
    assert workload.prefix_offsets is not None
    granule = workload.prefix_block_tokens
    asked: dict[tuple[tuple[int, int], ...], int] = {}
    split: set[tuple[tuple[int, int], ...]] = set()
    paths = []
    for i, (prompt, output) in enumerate(zip(workload.prompt_tokens, workload.output_tokens, strict=True)):
        row = workload.prefix_blocks[workload.prefix_offsets[i] : workload.prefix_offsets[i + 1]].tolist()
        known = int(prompt) + (int(output) - 1 if len(row) * granule >= prompt + granule else 0)
        path: tuple[tuple[int, int], ...] = ()
        inside = True
        for k, value in enumerate(row):
            ends = min((k + 1) * granule, known) // block_size
            path = (*path, (value, ends - min(k * granule, known) // block_size))
            asked[path] = asked.get(path, 0) + 1
            if inside and ends > prompt // block_size:
                split.add(path)
                inside = False
        paths.append(path)
    units: dict[tuple[tuple[int, int], ...], int] = {}  # the first node of each, and its blocks
    rows = []
    for path in paths:
        heads = []
        above = 0
        for k in range(len(path)):
            node = path[: k + 1]
            if path[k][1] > 0 and asked[node] > 1:
                if asked[node] != above or node in split:
                    heads.append(node)
                    units[node] = 0
                above = asked[node]
        rows.append(heads)
    for path, passing in asked.items():
        if passing > 1 and path[-1][1] > 0:
            units[max((h for h in units if path[: len(h)] == h), key=len)] += path[-1][1]
    prefixes = Prefixes.of(workload, block_size)
    number: dict[tuple[tuple[int, int], ...], int] = {}
    for i, heads in enumerate(rows):
        found = prefixes.units[prefixes.offsets[i] : prefixes.offsets[i + 1]].tolist()
        assert [number.setdefault(h, u) for h, u in zip(heads, found, strict=True)] == found
    assert len(prefixes.sizes) == len(units)
    assert all(prefixes.sizes[number[h]] == blocks for h, blocks in units.items())


def test_who_had_a_block_before_an_eviction_had_it_of_what_was_free_then() -> None:
    """A victim's state leaves blocks without a hash, too late for decoders that came before it in the step."""
    n = 22
    output = np.ones(n, np.int64)
    output[[5, 6, 7]] = 7, 6, 16
    workload = hashed(Workload(np.zeros(n), np.ones(n, np.int64), output), [[1]] * n, 1)
    limits = Limits(3, 17, 21, 1, chunked_prefill=False, prefix_caching=True, state_blocks=5)
    fast, naive = (replay(affine_table(17, 3), limits, workload, oracle=oracle) for oracle in (False, True))
    assert fast.requests.preemptions.sum() == 2
    assert_same(fast, naive)
