"""TLS between services: who a service is, whom it believes, and how its servers and channels come by that.

Always mutual: every service shows a certificate, and talks to nobody whose certificate is not of the same CA. The files
are read again when they change: by servers at the next handshake, by clients at the next connection.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from baton.core.errors import ConfigError
from baton.runtime.settings import ServiceSettings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the service's own certificate (with its chain) and key, and the CA of all services.

    `server_name`: the name that certificates of other services must carry; empty = the host of their address.
    """

    cert: Path
    key: Path
    ca: Path
    server_name: str = ""

    def check(self) -> None:
        """Raises ConfigError, which names the file that is missing or does not fit."""
        for path in (self.cert, self.key, self.ca):
            _read(path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_cert_chain(self.cert, self.key)
        except ssl.SSLError as error:
            raise ConfigError(f"{self.cert} and {self.key} are no certificate and its key: {error}") from error
        try:
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise ConfigError(f"{self.ca} holds no CA certificate: {error}") from error

    def server_credentials(self) -> grpc.ServerCredentials:
        """Raises ConfigError when the files cannot be read now; later the last ones that could be stay in force."""
        watched = _WatchedFiles(self)
        initial = watched.read()
        return grpc.dynamic_ssl_server_credentials(
            _configuration(*initial),
            watched.configuration,  # type: ignore[arg-type]  # the stubs forget that None is an answer
            require_client_authentication=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Raises ConfigError when the files cannot be read."""
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))

    def channel_options(self) -> list[tuple[str, Any]]:
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []


def tls_of(settings: ServiceSettings) -> Tls | None:
    """What the settings ask for; None = no TLS. Raises ConfigError: only some of the three files, or wrong ones."""
    files = {"tls_cert": settings.tls_cert, "tls_key": settings.tls_key, "tls_ca": settings.tls_ca}
    missing = [name for name, path in files.items() if not path]
    if len(missing) == len(files):
        return None
    if missing:
        raise ConfigError(f"TLS between services needs tls_cert, tls_key and tls_ca; missing: {', '.join(missing)}")
    tls = Tls(Path(settings.tls_cert), Path(settings.tls_key), Path(settings.tls_ca), settings.tls_server_name)
    tls.check()
    return tls


class _WatchedFiles:
    """Files of a server. `configuration` is called by gRPC before each handshake, on a thread of its own."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen: list[int] = []

    def read(self) -> tuple[bytes, bytes, bytes]:
        tls = self._tls
        content = _read(tls.key), _read(tls.cert), _read(tls.ca)
        self._seen = self._times()
        return content

    def configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """None: nothing has changed."""
        try:
            if self._times() == self._seen:
                return None
            self._tls.check()
            configuration = _configuration(*self.read())
        except (ConfigError, OSError) as error:
            log.error("new TLS files cannot be used; the earlier ones stay", error=str(error))
            return None
        log.info("TLS files read again", cert=str(self._tls.cert))
        return configuration

    def _times(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in (self._tls.cert, self._tls.key, self._tls.ca)]


def _configuration(key: bytes, cert: bytes, ca: bytes) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the TLS file {path}: {error.strerror}") from error
