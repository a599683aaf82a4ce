"""Draw the plots of docs/scenarios.md by running its commands: ``python scripts/scenario_plots.py``.

Each scenario shows what decided it. Where ``pngquant`` is installed, pictures get a palette.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).parent.parent / "docs"
SHOWN: Final = {
    "chat": ("candidates", "tpot-vs-load"),
    "code": ("candidates", "ttft-vs-load"),
    "long": ("candidates", "memory-vs-concurrency"),
    "reasoning": ("candidates", "latency-vs-batch"),
    "small": ("candidates", "tpot-vs-load"),
}
"""Plan file of a scenario -> its plots: the choice, and why."""


def main() -> None:
    """Run every plan of the page and keep the plots that it shows."""
    page = (DOCS / "scenarios.md").read_text(encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL):
        command = shlex.split(block.replace("\\\n", " ").split("\ngambrel ")[0])
        name = Path(command[command.index("--out") + 1]).stem
        with tempfile.TemporaryDirectory() as folder:
            ours = [str(Path(sys.executable).with_name("gambrel")), *command[1:], "--images", folder]
            subprocess.run(ours, check=True, cwd=folder, stdout=subprocess.DEVNULL)  # noqa: S603 - the page's own command
            have = {p.stem: p for p in Path(folder).glob("*.png")}
            for plot in SHOWN[name]:
                picture = DOCS / "images" / f"scenario-{name}-{plot}.png"
                shutil.copy(have[plot], picture)
                if shutil.which("pngquant"):
                    small = ["pngquant", "--force", "--output", str(picture), "64", str(picture)]
                    subprocess.run(small, check=True)  # noqa: S603 - a picture of our own
                print(f"{picture.name}: {picture.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
