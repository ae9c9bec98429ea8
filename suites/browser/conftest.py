"""Headless Chromium, as Debian packages it, and the pages that it opens from disk."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knorm_core.report import FILE, write_report
from suites.report.made_up import all_tables
from suites.report.recorded import recorded

ROOT = Path(__file__).parents[2]
WIDTHS = (360, 1280)
SCHEMES = ("light", "dark")
FLAGS = [
    "--headless=new",
    "--no-sandbox",  # as root there is none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PACKAGES = {"selenium": "selenium", "axe_playwright_python": "--no-deps axe-playwright-python", "pypdf": "pypdf"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say once, and how to mend it, where there is no browser."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    packages = [pip for module, pip in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        reason = f"{' and '.join(missing)} not found: apt-get install chromium chromium-driver"
    elif packages:
        reason = f"run tox -e browser, or pip install {'; pip install '.join(packages)}"
    else:
        return
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, from a package whose only other content drives another browser."""
    spec = importlib.util.find_spec("axe_playwright_python")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(120)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a real run: the reproduction on short samples, which takes a minute."""
    folder = tmp_path_factory.mktemp("results")
    command = "-m repro suites/reproduction --knorm-text embedded-short -q -p no:cacheprovider --knorm-report"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *command.split(), str(folder)],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV_"))},
        capture_output=True,
        text=True,
    )
    assert (folder / FILE).exists(), run.stdout + run.stderr
    return folder / FILE


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every kind of figure: all baselines, and tables of what has none."""
    return write_report(recorded(*all_tables()), tmp_path_factory.mktemp("everything"))


@pytest.fixture(params=["real_run", "everything"])
def page(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    """The browser with the page open, wide and light."""
    open_page(browser, page)
    return browser


def open_page(browser: Any, page: Path, width: int = WIDTHS[1], scheme: str = SCHEMES[0]) -> None:
    """Open a page from disk on a screen of ``width`` CSS pixels in a colour scheme."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what an earlier page left
    browser.get("about:blank")
    browser.get(page.as_uri())
