"""TLS between services: client, router and worker with certificates of one CA, and what is said of wrong ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import structlog
from cryptography import x509

from baton.client import BatonClient, GenerateRequest
from baton.core.errors import ConfigError, Unavailable
from baton.core.sampling import SamplingParams
from baton.router.service import RouterService
from baton.router.settings import RouterSettings
from baton.rpc.channel import open_channel
from baton.rpc.server import RpcServer
from baton.rpc.tls import Tls, tls_of
from baton.rpc.tls_probe import tls_problem
from baton.testing.certificates import Authority
from baton.testing.fake_worker import FakeWorker
from baton.testing.toy_engine import toy_tokens


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def strangers(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "theirs")


def identity(authority: Authority, name: str = "service", *hosts: str, server_name: str = "") -> Tls:
    return Tls(*authority.issue(name, *hosts), authority.ca, server_name)


def settings_of(tls: Tls | None) -> dict[str, str]:
    if tls is None:
        return {}
    return {
        "tls_cert": str(tls.cert), "tls_key": str(tls.key), "tls_ca": str(tls.ca), "tls_server_name": tls.server_name,
    }  # fmt: skip


@asynccontextmanager
async def system(worker_tls: Tls | None, router_tls: Tls | None) -> AsyncIterator[RouterService]:
    async with AsyncExitStack() as stack:
        worker = FakeWorker("u0", "unified", tls=worker_tls)
        await worker.start()
        stack.push_async_callback(worker.kill)
        settings = RouterSettings(listen="127.0.0.1:0", workers=[worker.address], **settings_of(router_tls))
        router = RouterService(settings)
        await router.start()
        stack.push_async_callback(router.stop, 0.0)
        yield router


async def answer(client: BatonClient) -> list[int]:
    request = GenerateRequest("toy", [5, 6, 7], SamplingParams(max_tokens=4, ignore_eos=True), deadline_s=20)
    return (await client.complete(request)).token_ids


@pytest.mark.parametrize("server_name", ["", "baton.internal"])
async def test_services_of_one_ca_work_together(authority: Authority, server_name: str) -> None:
    """With a name that all share, certificates need not hold addresses, which change."""
    hosts = ["baton.internal"] if server_name else []
    tls = identity(authority, "service", *hosts, server_name=server_name)
    async with system(tls, tls) as router, BatonClient([router.address], tls=tls) as client:
        assert await answer(client) == toy_tokens([5, 6, 7], 4)


async def test_wrong_certificates_are_told_by_name(
    authority: Authority, strangers: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.client.link._CONNECT_S", 0.2)
    ours, theirs = identity(authority), identity(strangers)
    believer = Tls(theirs.cert, theirs.key, authority.ca)  # believes the router, is not believed
    other_name = identity(authority, "other", "elsewhere.internal")
    async with system(ours, ours) as router:
        for tls, words in (
            (theirs, "shows a certificate that this service does not accept"),
            (believer, "does not accept this service's certificate"),
            (None, "speaks TLS: tls_cert, tls_key and tls_ca must be set"),
        ):
            async with BatonClient([router.address], tls=tls, connect_s=2.0) as client:
                with pytest.raises(Unavailable, match=words):
                    await answer(client)
    async with system(ours, other_name) as router, BatonClient([router.address], tls=ours, connect_s=2.0) as client:
        with pytest.raises(Unavailable, match="IP address mismatch"):
            await answer(client)
    async with system(None, None) as router, BatonClient([router.address], tls=ours, connect_s=2.0) as client:
        with pytest.raises(Unavailable, match="speaks no TLS"):
            await answer(client)


async def test_a_router_says_why_a_worker_is_not_reached(authority: Authority, strangers: Authority) -> None:
    with structlog.testing.capture_logs() as logs:
        async with system(identity(strangers), identity(authority)):
            async with asyncio.timeout(10):
                while not any(line["event"] == "worker not reachable" and "accept" in line["reason"] for line in logs):
                    await asyncio.sleep(0.02)
    assert not any(line["log_level"] == "error" for line in logs)


async def test_new_certificates_are_taken_up_without_a_restart(
    authority: Authority, strangers: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files change to those of another CA: servers follow at the next handshake, clients at the next connection."""
    monkeypatch.setattr("baton.client.link._CONNECT_S", 0.2)
    tls = identity(authority)
    async with system(tls, tls) as router, BatonClient([router.address], tls=tls) as client:
        assert await answer(client) == toy_tokens([5, 6, 7], 4)
        cert, key = strangers.issue("service")
        for new, old in ((cert, tls.cert), (key, tls.key), (strangers.ca, tls.ca)):
            new.replace(old)
        async with BatonClient([router.address], tls=tls) as newcomer:
            assert await answer(newcomer) == toy_tokens([5, 6, 7], 4)
        listen = router.address
        await router.stop(0.0)
        again = RouterService(RouterSettings(listen=listen, workers=router._settings.workers, **settings_of(tls)))
        await again.start()
        assert await answer(client) == toy_tokens([5, 6, 7], 4)  # the old client, by a new connection
        await again.stop(0.0)


async def test_broken_files_change_nothing_for_a_server_that_runs(authority: Authority) -> None:
    tls = identity(authority)
    server = RpcServer("127.0.0.1:0", [], tls)
    await server.start()
    address = f"127.0.0.1:{server.port}"
    good = Tls(*authority.issue("good"), authority.ca)
    tls.cert.write_text("no certificate")
    assert await tls_problem(address, good) == ""
    tls.cert.unlink()
    assert await tls_problem(address, good) == ""
    await server.stop()


def test_settings_that_cannot_work(authority: Authority, strangers: Authority, tmp_path: Path) -> None:
    tls, other = identity(authority), identity(strangers)
    assert tls_of(RouterSettings()) is None and tls_of(RouterSettings(**settings_of(tls))) == tls
    given = settings_of(tls)
    for change, words in (
        ({"tls_ca": ""}, "missing: tls_ca"),
        ({"tls_key": "", "tls_cert": ""}, "missing: tls_cert, tls_key"),
        ({"tls_ca": str(tmp_path / "none")}, "cannot read the TLS file .*none"),
        ({"tls_key": str(other.key)}, "no certificate and its key"),
        ({"tls_ca": str(tls.key)}, "holds no CA certificate"),
    ):
        with pytest.raises(ConfigError, match=words):
            tls_of(RouterSettings(**{**given, **change}))


async def test_unix_sockets_need_no_tls(authority: Authority, tmp_path: Path) -> None:
    tls = identity(authority)
    server = RpcServer(f"unix:{tmp_path / 's.sock'}", [], tls)
    await server.start()
    async with open_channel(f"unix:{tmp_path / 's.sock'}", tls) as channel:
        await channel.channel_ready()
    await server.stop()


def test_issued_certificates_are_new_ones(authority: Authority) -> None:
    """What the tests of rotation stand on."""
    serials = [x509.load_pem_x509_certificate(authority.issue("x")[0].read_bytes()).serial_number for _ in range(2)]
    assert serials[0] != serials[1]
