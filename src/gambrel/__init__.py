"""What an LLM deployment will do under your real traffic, before you buy the GPUs.

::

    import gambrel as gb

    plan = gb.plan("meta-llama/Llama-3.1-8B-Instruct", "requests.csv", ["ttft.p95<=1s", "tpot.p95<=50ms"])

The functions live in :mod:`gambrel.faces.api`; importing gambrel loads none of them until one is used.
"""

from __future__ import annotations

from typing import Any

from gambrel.core.version import __version__ as __version__


def __getattr__(name: str) -> Any:
    from gambrel.faces import api

    if name in api.__all__:
        return getattr(api, name)
    raise AttributeError(f"module 'gambrel' has no attribute {name!r}; it has {', '.join(sorted(api.__all__))}")


def __dir__() -> list[str]:
    from gambrel.faces import api

    return sorted([*api.__all__, "__version__"])
