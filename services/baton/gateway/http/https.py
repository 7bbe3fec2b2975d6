"""The gateway's HTTPS: its certificate, read again when it changes, and the CA of clients that must show one."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path

import structlog

from baton.core.errors import ConfigError
from baton.gateway.settings import GatewaySettings

log = structlog.get_logger(__name__)

_POLL_S = 5.0


@dataclass(frozen=True, slots=True)
class Https:
    """PEM files. `client_ca`: clients must show a certificate of this CA; None = they need none."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Raises ConfigError, which names the file that is missing or wrong."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load(context)
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(f"{self.client_ca} holds no CA certificate for clients: {error}") from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def keep_current(self, context: ssl.SSLContext) -> None:
        """Take up a new certificate within seconds, for new connections; until cancelled."""
        seen = self._times()
        while True:
            await asyncio.sleep(_POLL_S)
            now = self._times()
            if now in (seen, None):
                continue
            try:
                self._load(context)
            except ConfigError as error:
                log.error("the new HTTPS certificate cannot be used; the earlier one stays", error=error.message)
                continue
            seen = now
            log.info("HTTPS certificate read again", cert=str(self.cert))

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{self.cert} and {self.key} are no certificate and its key: {error}") from error

    def _times(self) -> list[int] | None:
        """None while a file is missing: it is being replaced."""
        try:
            return [path.stat().st_mtime_ns for path in (self.cert, self.key)]
        except OSError:
            return None


def https_of(settings: GatewaySettings) -> Https | None:
    """What the settings ask for; None = plain HTTP. Raises ConfigError when it cannot be."""
    if not (settings.https_cert or settings.https_key or settings.https_client_ca):
        return None
    if not (settings.https_cert and settings.https_key):
        raise ConfigError("HTTPS needs https_cert and https_key; one of them is missing")
    client_ca = Path(settings.https_client_ca) if settings.https_client_ca else None
    https = Https(Path(settings.https_cert), Path(settings.https_key), client_ca)
    https.context()
    return https
