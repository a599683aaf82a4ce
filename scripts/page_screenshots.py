"""Take the pictures of docs/ui.md from the running page: ``python scripts/page_screenshots.py docs/images``.

Every view at three widths (a phone's 360, 1280, 2560 pixels), dark where it matters. Where ``pngquant`` is installed,
pictures get a palette, which makes them a third as large. The run shown in Measure is that of a twin of a small model
on an L4, slowed by fifteen per cent, so that there is something to fit.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn
from playwright.sync_api import sync_playwright

from gambrel.faces.web.app import create_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIZES: Final = {"phone": (360, 760, 1.0), "": (1280, 860, 0.75), "large": (2560, 1300, 0.4)}
"""Part of the picture's name -> width and height of the window, and pixels of the picture for each of the page's."""

MOVE: Final = (
    "([id, to]) => { const s = document.getElementById(id); s.value = to; s.dispatchEvent(new Event('input')); }"
)
SCROLL: Final = (
    "(at) => { if (at) { document.querySelector(at).scrollIntoView(); scrollBy(0, -70); } else scrollTo(0, 0); }"
)


def main(folder: Path) -> None:
    """Serve the page on a free port and photograph every view."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(), log_level="error"))
    threading.Thread(target=server.run, args=([listening],), daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        Camera(browser, address, folder).views()
        browser.close()
    server.should_exit = True
    pictures = sorted(folder.glob("*.png"))
    print(f"{len(pictures)} pictures, {sum(p.stat().st_size for p in pictures) / 1e3:.0f} kB")


class Camera:
    """A browser, what it photographs, and where the pictures go."""

    def __init__(self, browser: Browser, address: str, folder: Path) -> None:
        self.browser, self.address, self.folder = browser, address, folder

    def views(self) -> None:
        """Every view at every size."""
        log = self.ask("/api/traffic/generate", "{}")["id"]
        plan, run = self.planned(log), self.measured()
        fit = self.fitted(run)
        for size in SIZES:
            self.take("explore", "/explore", size)
            charts = ".side .grid" if size == "phone" else ""
            self.take("explore-compare", "/explore?b.gpu=l40s&batch=24&context=8192", size, dark=True, at=charts)
            self.take("traffic", f"/traffic?log={log}", size, at="#traffic-result")
            self.take("plan-form", f"/plan?log={log}", size)
            self.take("plan", f"/plan?log={log}&plan={plan}", size, at="#answer")
            self.take("plan-what-if", f"/plan?log={log}&plan={plan}", size, at="#whatif", slide=("whatif-load", 6))
            self.take("measure", f"/measure?run={run}", size, dark=size == "large")
            self.take("measure-fit", f"/measure?run={run}&fit={fit}", size, at="#fit-result .grid")
            self.take("learn", "/learn/train", size, dark=size == "phone")

    def ask(self, path: str, body: str) -> dict[str, str]:
        """POST to the page's own server, from the page."""
        page = self.browser.new_page()
        page.goto(self.address)
        made: dict[str, str] = page.evaluate(
            "async ([path, body]) => (await fetch(path, { method: 'POST', body })).json()", [path, body]
        )
        page.close()
        if "error" in made:
            sys.exit(f"{path}: {made['error']}")
        return made

    def planned(self, log: str) -> str:
        """The id of a plan for the log."""
        slo = '["ttft.p95<=1s", "tpot.p95<=50ms"]'
        made = self.ask("/api/plan", f'{{"traffic": {{"id": "{log}"}}, "slo": {slo}, "growth": 0.1}}')["id"]
        self.wait_for(f"/api/plan/{made}")
        return made

    def measured(self) -> str:
        """The name of a run: a twin in a process of its own, measured."""
        words = [
            "-c",
            "from gambrel.faces.cli import main; main()",
            "twin",
            "--model",
            "Qwen/Qwen3-0.6B",
            "--gpu",
            "l4",
            "--max-num-seqs",
            "64",
        ]
        words += ["--max-num-batched-tokens", "2048", "--scale", "1.15", "--port", "0", "--json"]
        with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True) as twin:  # noqa: S603 - ours
            lines = [] if twin.stdout is None else list(iter(twin.stdout.readline, "}\n"))
            url = json.loads("".join([*lines, "}"]))["url"]
            asked = f'{{"url": "{url}", "model": "Qwen/Qwen3-0.6B", "concurrency": [1, 2, 4, 8, 16], '
            made = self.ask("/api/measure", asked + '"prompt": 256, "output": 64, "duration_s": 8}')["id"]
            name = self.wait_for(f"/api/measure/{made}")["run"]
            twin.terminate()
        return name

    def fitted(self, run: str) -> str:
        """The id of a fit to the run."""
        served = '"model": "Qwen/Qwen3-0.6B", "gpu": "l4", "max_num_seqs": 64, "max_num_batched_tokens": 2048'
        made = self.ask("/api/fit", f'{{"run": "{run}", {served}, "leave_out_bound": true}}')["id"]
        self.wait_for(f"/api/fit/{made}")
        return made

    def wait_for(self, path: str) -> dict[str, str]:
        """What a job came to, once it has ended."""
        page = self.browser.new_page()
        page.goto(self.address)
        told: str = page.evaluate("async (path) => (await fetch(path)).text()", f"{path}/events")
        found: dict[str, str] = page.evaluate("async (path) => (await fetch(path)).json()", path)
        page.close()
        if "error" in found:
            sys.exit(f"{path}: {told[-300:]}")
        return found

    def take(
        self, name: str, path: str, size: str, *, dark: bool = False, at: str = "", slide: tuple[str, int] | None = None
    ) -> None:
        """One picture, ``at`` an element where that is not the top; ``slide`` moves a slider first."""
        width, height, scale = SIZES[size]
        page = self.browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            device_scale_factor=scale,
        )
        page.goto(self.address + path)
        page.wait_for_selector("html[data-ready]")
        if at:
            page.wait_for_selector(at, timeout=60_000)
        page.wait_for_timeout(2000)
        if slide is not None:
            page.evaluate(MOVE, list(slide))
        page.evaluate(SCROLL, at)
        page.wait_for_timeout(1800)
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        self.keep(page, "-".join(part for part in (name, size) if part))
        if wide > 0:
            print(f"{name} at {width}: {wide} pixels wider than the screen")
        page.close()

    def keep(self, page: Page, name: str) -> None:
        """Write the picture, small where that can be done."""
        target = self.folder / f"{name}.png"
        page.screenshot(path=target)
        if smaller := shutil.which("pngquant"):
            words = [smaller, "--force", "--skip-if-larger", "--output", str(target), "64", str(target)]
            subprocess.run(words, check=False)  # noqa: S603 - our own file
        print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
