"""The page in a real browser: Debian's Chromium, driven by Playwright, against a gateway whose router is scripted.

Without a browser these tests are skipped; `make ui-test` installs one where it can.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from baton.gateway.app import create_app
from baton.gateway.server import listen, serve
from baton.gateway.service import Service
from baton.gateway.settings import GatewaySettings
from baton.gateway.text_model import TextModel
from baton.models import TINY, bundled
from baton.runtime.lifecycle import cancel_and_wait

if TYPE_CHECKING:
    from ui_site import Site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def model() -> TextModel:
    return TextModel.load(bundled(TINY))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium; or make ui-test)")
    from playwright.async_api import async_playwright  # tests that lack it are skipped where they are collected

    async with async_playwright() as driver:
        launched = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        await launched.close()


@pytest_asyncio.fixture(loop_scope="session")
async def site(model: TextModel) -> AsyncIterator[Site]:
    """A gateway of its own for every test. What the browser complains about fails the test."""
    from ui_site import NAME, ScriptedRouter, Site

    router = ScriptedRouter(model)
    settings = GatewaySettings(reasoning_parser="think", tool_parser="hermes")
    listener = listen("127.0.0.1", 0)
    serving = asyncio.create_task(serve(create_app(Service(router, model, NAME, settings)), listener, 0.0))
    site = Site("http://{}:{}".format(*listener.getsockname()), router)
    yield site
    await cancel_and_wait(serving)
    assert not site.complaints
    assert site.hosts <= {site.url.removeprefix("http://")}, "the page asked other hosts"
