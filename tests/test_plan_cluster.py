"""Who computes a search, and whether it was interrupted, must not change a byte of the answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gambrel.core.errors import GambrelError
from gambrel.faces import api
from gambrel.faces.backends import BACKENDS, workers
from gambrel.faces.documents import plan_document
from gambrel.faces.search_file import SearchFile
from gambrel.plan import Space
from gambrel.plan.journal import digest, read_entry, write_entry
from gambrel.plan.question import Question
from gambrel.plan.search import Threads, search
from test_plan_search import MODEL, chat, devices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from gambrel.plan.question import Search

OBJECTIVES = ("ttft.p95<=800ms", "tpot.p95<=50ms", "goodput>=90%")
AXES: dict[str, Any] = {"tp": (1, 2), "max_num_seqs": (64, 256), "max_num_batched_tokens": (512, 2048)}
GPUS = ("l4", "l40s", "h100-sxm")


def answer(**how: Any) -> str:
    """The plan as one JSON document, apart from the time it took."""
    document = plan_document(api.plan(MODEL, chat(200, 12.0), OBJECTIVES, gpus=GPUS, **AXES, **how))
    document.pop("wall_s")
    return json.dumps(document)


def question() -> Question:
    return Question(MODEL, chat(200, 12.0), api.slo(*OBJECTIVES), Space(devices(*GPUS), **AXES), api.pricer())


def searched(**how: Any) -> Search:
    q = question()
    return search(q.model, q.workload, q.slo, q.space, q.pricer, **how)


@pytest.fixture(scope="module")
def reference() -> str:
    return answer(backend="threads")


@pytest.mark.parametrize("backend", ["threads", "auto", "loky", "ray", "dask"])
@pytest.mark.filterwarnings("ignore")  # the cluster libraries' own
def test_every_backend_gives_the_same_bytes(backend: str, reference: str) -> None:
    module = {"loky": "joblib", "ray": "ray", "dask": "distributed"}.get(backend)
    if module is not None:
        pytest.importorskip(module, reason=f"backend {backend} needs {module}: gambrel[{backend}]")
    assert answer(backend=backend) == reference


@pytest.mark.filterwarnings("ignore")
def test_a_dask_scheduler_is_reached_by_its_address(reference: str) -> None:
    distributed = pytest.importorskip("distributed", reason="needs gambrel[dask]")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert answer(backend="dask", address=cluster.scheduler_address) == reference


@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_is_reached_by_its_address(reference: str) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs gambrel[ray]")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        assert answer(backend="ray", address=cluster.address) == reference
    finally:
        cluster.shutdown()


class Interrupted(Exception):  # noqa: N818 - stands in for Ctrl-C
    pass


class Stops:
    """A pool that is interrupted after some tasks."""

    def __init__(self, after: int) -> None:
        self.left = after

    def each(self, work: Callable[[Any], Search], tasks: Sequence[Any]) -> Iterator[Search]:
        for found in Threads().each(work, tasks):
            if self.left == 0:
                raise Interrupted
            self.left -= 1
            yield found


@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_an_interrupted_search_goes_on_and_ends_the_same(tmp_path: Path, after: int) -> None:
    path = tmp_path / "search.jsonl"
    with pytest.raises(Interrupted):
        searched(pool=Stops(after), journal=SearchFile(path))
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + after
    resumed = searched(journal=SearchFile(path))
    assert repr(resumed) == repr(searched())
    again = searched(pool=Stops(0), journal=SearchFile(path))  # nothing is left to compute
    assert repr(again) == repr(resumed)


def test_the_file_holds_every_candidate_with_its_fate(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    found = searched(journal=SearchFile(path))
    rows = [row for line in path.read_text().splitlines()[1:] for row in json.loads(line)["ruled_out"]]
    assert {c.deployment.label for c in found.ruled_out} <= {row["label"] for row in rows}
    assert all(row["lost_because"] for row in rows)


def test_a_line_cut_off_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    whole = searched(journal=SearchFile(path))
    path.write_text(path.read_text()[:-40])
    assert repr(searched(journal=SearchFile(path))) == repr(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_another_questions_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    searched(journal=SearchFile(path))
    q = question()
    with pytest.raises(GambrelError, match="another question"):
        search(q.model, chat(200, 12.0, seed=1), q.slo, q.space, q.pricer, journal=SearchFile(path))
    path.write_text("hello\n")
    with pytest.raises(GambrelError, match="not a search file"):
        searched(journal=SearchFile(path))


def test_an_entry_reads_back_as_it_was() -> None:
    q, found = question(), searched()
    task, back = read_entry(json.loads(json.dumps(write_entry("all of it", found, q), allow_nan=False)), q)
    assert task == "all of it"
    assert repr(back) == repr(found)


def test_the_digest_knows_the_question() -> None:
    assert digest(question()) == digest(question())
    q = question()
    other = Question(q.model, q.workload, q.slo, Space(devices(*GPUS), **AXES, spare=1), q.pricer)
    assert digest(other) != digest(q)


def test_a_backend_that_is_not_there_says_what_would_work() -> None:
    with pytest.raises(GambrelError, match="unknown backend 'slurm'; known: auto, threads, loky, ray, dask"):
        workers("slurm")
    with (
        pytest.raises(GambrelError, match="runs on this machine and takes no address"),
        workers("threads", "tcp://10.0.0.1:8786"),
    ):
        pass
    assert set(BACKENDS) == {"auto", "threads", "loky", "ray", "dask"}
