"""Take the pictures of docs/ui.md from the running page: ``python scripts/page_screenshots.py docs/images``."""

from __future__ import annotations

import shutil
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from playwright.sync_api import sync_playwright

from gambrel.faces.web.app import create_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


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
        photograph(browser, address, folder)
        browser.close()
    server.should_exit = True


def photograph(browser: Browser, address: str, folder: Path) -> None:
    """Eight pictures: each view, light and dark, from a phone to a large screen."""

    def opened(width: int, height: int, scheme: str, path: str, scale: float = 1.0) -> Page:
        page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
            device_scale_factor=scale,
        )
        page.goto(address + path)
        page.wait_for_timeout(2500)
        return page

    def keep(page: Page, name: str) -> None:
        page.wait_for_timeout(1200)
        target = folder / f"{name}.png"
        page.screenshot(path=target)
        print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")

    keep(opened(1024, 800, "light", "/explore"), "explore")
    keep(opened(1280, 960, "dark", "/explore?b.gpu=l40s&batch=24&context=8192"), "explore-compare-dark")
    keep(opened(360, 780, "light", "/explore"), "explore-phone")
    keep(opened(2560, 1280, "dark", "/explore", 0.5), "explore-large-dark")
    keep(opened(1280, 900, "light", "/learn/train"), "learn")
    page = opened(1200, 900, "light", "/traffic")
    page.click("#sample")
    page.wait_for_selector("#to-plan")
    keep(page, "traffic")
    page.click("#to-plan")
    page.wait_for_timeout(500)
    page.click("#run")
    page.wait_for_selector("#answer", timeout=120_000)
    keep(page, "plan")
    page.evaluate("document.getElementById('whatif').scrollIntoView(); scrollBy(0, -80)")
    page.wait_for_timeout(800)
    page.evaluate(
        """const slider = document.getElementById('whatif-load');
        slider.value = 6;
        slider.dispatchEvent(new Event('input'));"""
    )
    keep(page, "plan-what-if")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
