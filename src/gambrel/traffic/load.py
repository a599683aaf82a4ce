"""One door for whoever has a workload in mind: a file of requests, a profile's sentence, or the shipped sample."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from gambrel.core.errors import UnknownName, WorkloadError
from gambrel.traffic.profiles import profile, profiles
from gambrel.traffic.readers import read_workload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gambrel.core.workload import Workload

__all__ = ["SAMPLE_SPEC", "load_workload", "sample"]

SAMPLE = "sample"
SAMPLE_SPEC = "chat:rate=5,n=2000,seed=8"
"""What ``scripts/make_sample.py`` generates the shipped sample from."""


def load_workload(spec: str | Path, *, columns: Mapping[str, str] | None = None) -> Workload:
    """The workload of a path, of ``chat:rate=5`` (or ``profile:chat:rate=5``), or of ``sample``.

    A file that exists wins over a profile of the same name. ``columns`` are a file's, as for :func:`read_workload`.

    Raises:
        WorkloadError: neither a file nor a profile, with the nearest names; or what the file holds is no log.
    """
    text = str(spec)
    if text.startswith("profile:") and text.isprintable():
        return profile(text.removeprefix("profile:"))
    try:
        exists = Path(text).exists()
    except (OSError, ValueError):
        exists = False
    if exists:
        return read_workload(text, columns=columns)
    if columns:
        raise WorkloadError(f"{text!r}: no such file; columns name the fields of a log file")
    if not text.isprintable():
        raise WorkloadError(f"{text!a}: neither a file nor a profile; a log's path or chat:rate=5 works")
    name = text.partition(":")[0].strip()
    if name in profiles():
        return profile(text)
    if text == SAMPLE:
        return sample()
    if isinstance(spec, Path) or "/" in text or "." in text or "\\" in text:
        return read_workload(text)  # names the missing file
    known = [*profiles(), SAMPLE]
    raise WorkloadError(
        f"{UnknownName('workload', name, known)}; a workload is a log file or one of {', '.join(known)}, "
        "e.g. chat:rate=5,minutes=30"
    )


def sample() -> Workload:
    """The shipped log of 2,000 requests, generated from the profile ``chat``: for demonstrations, not for decisions."""
    with as_file(files("gambrel.traffic").joinpath("data", "sample.csv.gz")) as path:
        return replace(read_workload(path), source=f"shipped sample, generated from {SAMPLE_SPEC}")
