"""What an LLM deployment will do under your real traffic, before you buy the GPUs.

::

    import gambrel as gb

    plan = gb.plan("meta-llama/Llama-3.1-8B-Instruct", "requests.csv", ["ttft.p95<=1s", "tpot.p95<=50ms"])

The functions live in :mod:`gambrel.faces.api`; importing gambrel loads none of them until one is used. One function,
``plan``, has the name of a room: the room can be called, so ``gb.plan(...)`` works whatever was imported.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from gambrel.core.version import __version__ as __version__

VERBS = ("plan",)
"""Functions that share their name with a room."""


class _Verb(ModuleType):
    """A room that can be called: the function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from gambrel.faces import api

        return getattr(api, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """Importing a room binds its name here; a function of that name must not vanish behind it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in VERBS and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    from gambrel.faces import api

    if name in api.__all__:
        return getattr(api, name)
    raise AttributeError(f"module 'gambrel' has no attribute {name!r}; it has {', '.join(sorted(api.__all__))}")


def __dir__() -> list[str]:
    from gambrel.faces import api

    return sorted([*api.__all__, "__version__"])


if "IPython" in sys.modules:  # a notebook or shell: nouns are shown as what they are
    _shell = sys.modules["IPython"].get_ipython()
    if _shell is not None:
        from gambrel.faces.notebook import register

        register(_shell)
