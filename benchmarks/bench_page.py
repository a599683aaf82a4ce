"""The page's targets in headless Chromium, as ratios of what this run measured to what is allowed; below 1 meets them.

The server, the browser and this script share the machine's cores, so on a busy one all of it is slower; the load is
printed with the figures. Nothing but the page's own server is asked: a request to anywhere else fails the run.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import uvicorn
from playwright.sync_api import sync_playwright

from gambrel.faces.web.app import create_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SLIDE = """async ([id, values, counter]) => {
    window[counter] = [];
    const slider = document.getElementById(id);
    for (const value of values) {
        const before = window[counter].length;
        slider.value = value;
        slider.dispatchEvent(new Event('input', { bubbles: true }));
        while (window[counter].length === before) await new Promise((r) => setTimeout(r, 2));
        await new Promise((r) => setTimeout(r, 30));
    }
    return window[counter];
}"""


def report(name: str, value: float, allowed: float, unit: str) -> None:
    """One line: measured, allowed, ratio."""
    print(f"{name:52s} {value:9.3f} {unit:3s}  allowed {allowed:8.3f}   ratio {value / allowed:6.3f}")


def spread(name: str, took_ms: list[float], p50: float, p90: float) -> None:
    """The median and the 90th percentile of times."""
    tenths = statistics.quantiles(took_ms, n=10)
    report(f"{name}, p50 of {len(took_ms)}", statistics.median(took_ms), p50, "ms")
    report(f"{name}, p90", tenths[8], p90, "ms")


def opened(browser: Browser, address: str, path: str) -> tuple[Page, list[str], list[int]]:
    """A view in a browser without a cache: the page, foreign requests, and the bytes of every answer."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    foreign: list[str] = []
    sizes: list[int] = []
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else foreign.append(r.url))
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda e: sizes.append(int(e["encodedDataLength"])))
    page.goto(address + path)
    page.wait_for_selector("html[data-ready]")
    page.wait_for_timeout(1500)
    return page, foreign, sizes


def explore(browser: Browser, address: str) -> None:
    """Start, transfer and sliders of Explore, of one configuration and of two."""
    starts, foreign = [], list[str]()
    for _ in range(5):
        page, seen, sizes = opened(browser, address, "/explore")
        foreign += seen
        starts.append(float(page.evaluate("document.documentElement.dataset.ready")) / 1000)
        page.close()
    report("interactive, median of 5 first visits", statistics.median(starts), 1.5, "s")
    report("transferred on the first visit", sum(sizes) / 1e6, 1.6, "MB")
    print(f"requests to anywhere else: {len(foreign)}")
    if foreign:
        sys.exit(f"the page asked {foreign[0]}")
    for what, path in (("one configuration", "/explore"), ("two side by side", "/explore?b.gpu=l40s")):
        page, _, _ = opened(browser, address, path)
        took = [
            ms
            for slider, values in (("batch", [*range(16, 56), *range(55, 15, -1)]), ("context", list(range(30, 70))))
            for ms in page.evaluate(SLIDE, [slider, values, "repaints"])
        ]
        spread(f"slider to repainted chart, {what}", took, 40.0, 80.0)
        page.close()


def whatif(browser: Browser, address: str) -> None:
    """A what-if on a plan for 20,000 requests: by the server's own clock, and as seen in the page."""
    page, _, _ = opened(browser, address, "/traffic")
    made: dict[str, Any] = page.evaluate(
        """async () => {
            const lines = ['arrival_s,prompt_tokens,output_tokens'];
            for (let i = 0; i < 20000; i++)
                lines.push(`${(i / 8).toFixed(3)},${200 + (i * 37) % 1800},${20 + (i * 13) % 280}`);
            const answer = await fetch('/api/traffic?name=log.csv', { method: 'POST', body: lines.join('\\n') });
            return answer.json();
        }"""
    )
    page.goto(f"{address}/plan?log={made['id']}")
    page.wait_for_selector("#run:not([disabled])")
    page.uncheck("#all-gpus")
    page.evaluate(
        "for (const box of document.querySelectorAll('#gpus [type=checkbox]')) box.checked = box.value === 'h100-sxm'"
    )
    page.click("#run")
    page.wait_for_selector("#answer", timeout=180_000)
    page.wait_for_timeout(1500)
    page.locator("#whatif").scroll_into_view_if_needed()
    seen = page.evaluate(SLIDE, ["whatif-load", [1, 4, -3, 2, 5, -6, 3, 6, -1, 0], "whatifs"])
    report("what-if on 20,000 requests, seen in the page, worst", max(seen) / 1000, 0.5, "s")
    page.close()


def main() -> None:
    """Everything, on a server of its own."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(), log_level="error", ws="none", lifespan="off"))
    threading.Thread(target=server.run, args=([listening],), daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium here; Debian's package chromium has it")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        explore(browser, address)
        whatif(browser, address)
        browser.close()
    server.should_exit = True


if __name__ == "__main__":
    main()
