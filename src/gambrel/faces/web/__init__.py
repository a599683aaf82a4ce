"""The web page: see the knee, move it, decide. One HTML, one script, one stylesheet; everything is computed here.

Charts are the very specs of the reports; the page only draws them. Nothing is fetched from anywhere else, nothing a
person uploads outlives the process.
"""

from __future__ import annotations

__all__: list[str] = []
