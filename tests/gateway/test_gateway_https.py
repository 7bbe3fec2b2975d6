"""HTTPS: with a certificate of its own, from clients that must show one, and with a new one while it runs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import openai
import pytest
from cryptography import x509
from test_gateway_keys import CHAT

from baton.core.errors import ConfigError
from baton.gateway.app import create_app
from baton.gateway.http import https as https_module
from baton.gateway.http.https import Https, https_of
from baton.gateway.server import listen, serve
from baton.gateway.service import Service
from baton.gateway.settings import GatewaySettings
from baton.runtime.lifecycle import cancel_and_wait
from baton.testing.certificates import Authority


@asynccontextmanager
async def running(service: Service, https: Https) -> AsyncIterator[str]:
    listener = listen("127.0.0.1", 0)
    serving = asyncio.create_task(serve(create_app(service), listener, 0.0, https=https))
    yield "https://{}:{}".format(*listener.getsockname())
    await cancel_and_wait(serving)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


async def test_clients_that_believe_the_authority(service: Service, authority: Authority) -> None:
    async with running(service, Https(*authority.issue("gateway"))) as url:
        trusting = httpx.AsyncClient(verify=ssl.create_default_context(cafile=authority.ca))
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", http_client=trusting) as client:
            assert (await client.chat.completions.create(**CHAT)).usage.completion_tokens == 3
        async with httpx.AsyncClient() as stranger:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.get(f"{url}/health")
        async with httpx.AsyncClient() as plain:
            with pytest.raises(httpx.RemoteProtocolError):
                await plain.get(f"{url.replace('https', 'http')}/health")


async def test_clients_that_must_show_a_certificate(service: Service, authority: Authority, tmp_path: Path) -> None:
    strangers = Authority(tmp_path / "strangers")
    https = Https(*authority.issue("gateway"), authority.ca)
    async with running(service, https) as url:
        for issuer, welcome in ((authority, True), (strangers, False), (None, False)):
            context = ssl.create_default_context(cafile=authority.ca)
            if issuer is not None:
                context.load_cert_chain(*issuer.issue("client"))
            async with httpx.AsyncClient(verify=context) as http:
                if welcome:
                    assert (await http.get(f"{url}/health")).status_code == 200
                    continue
                with pytest.raises(httpx.TransportError):
                    await http.get(f"{url}/health")


async def test_a_new_certificate_is_taken_up(
    service: Service, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(https_module, "_POLL_S", 0.02)
    https = Https(*authority.issue("gateway"))
    async with running(service, https) as url:
        before = await serial(url, authority)
        https.cert.write_text("nonsense")
        await asyncio.sleep(0.1)
        assert await serial(url, authority) == before
        authority.issue("gateway")
        new = x509.load_pem_x509_certificate(https.cert.read_bytes()).serial_number
        async with asyncio.timeout(5):
            while await serial(url, authority) != new:
                await asyncio.sleep(0.02)
    assert new != before


async def serial(url: str, authority: Authority) -> int:
    """Serial number of the certificate that the gateway shows."""
    host, port = url.removeprefix("https://").split(":")
    context = ssl.create_default_context(cafile=authority.ca)
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(shown).serial_number


def test_settings_that_cannot_work(authority: Authority, tmp_path: Path) -> None:
    cert, key = map(str, authority.issue("gateway"))
    _, other_key = map(str, authority.issue("other"))
    assert https_of(GatewaySettings()) is None
    assert https_of(GatewaySettings(https_cert=cert, https_key=key)) == Https(Path(cert), Path(key))
    for settings, words in (
        ({"https_cert": cert}, "https_cert and https_key"),
        ({"https_client_ca": cert}, "https_cert and https_key"),
        ({"https_cert": cert, "https_key": other_key}, "no certificate and its key"),
        ({"https_cert": str(tmp_path / "none"), "https_key": key}, "none"),
        ({"https_cert": cert, "https_key": key, "https_client_ca": key}, "no CA certificate"),
    ):
        with pytest.raises(ConfigError, match=words):
            https_of(GatewaySettings(**settings))
