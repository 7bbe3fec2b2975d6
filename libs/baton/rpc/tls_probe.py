"""Why two services do not come together, where TLS is the reason: gRPC itself says little more than "unavailable".

Asked when a connection does not come up; makes a handshake of its own.
"""

from __future__ import annotations

import asyncio
import ssl

from baton.core.errors import ConfigError
from baton.rpc.tls import Tls
from baton.runtime.lifecycle import parse_host_port

_CONNECT_S = 3.0
_REFUSAL_S = 0.5  # with TLS 1.3 a client hears after its handshake that its certificate is not wanted


async def tls_problem(address: str, tls: Tls | None) -> str:
    """What keeps a connection to `host:port` from coming up, in one sentence; empty when TLS is not what is wrong."""
    if address.startswith("unix:"):
        return ""
    try:
        host, port = parse_host_port(address)
        context = _context(tls)
        async with asyncio.timeout(_CONNECT_S):
            name = (tls.server_name if tls is not None else "") or host
            reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        return f"{address} shows a certificate that this service does not accept: {error.verify_message}"
    except ssl.SSLError as error:
        return f"{address} speaks no TLS, which this service is set to: {error.reason}" if tls is not None else ""
    except ConnectionResetError:
        return f"{address} ends TLS handshakes: it may speak no TLS" if tls is not None else ""
    except (OSError, TimeoutError, ConfigError):
        return ""  # nobody there: that is for others to tell
    try:
        if tls is None:
            return f"{address} speaks TLS: tls_cert, tls_key and tls_ca must be set here too"
        return await _refusal(address, reader)
    finally:
        writer.transport.abort()  # gRPC does not answer a goodbye


async def _refusal(address: str, reader: asyncio.StreamReader) -> str:
    try:
        async with asyncio.timeout(_REFUSAL_S):
            if await reader.read(1):
                return ""
    except TimeoutError:
        return ""
    except ssl.SSLError as error:
        return f"{address} does not accept this service's certificate: {error.reason}"
    except OSError:
        pass
    return f"{address} does not accept this service's certificate"


def _context(tls: Tls | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if tls is None else tls.ca)
    context.set_alpn_protocols(["h2"])
    if tls is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_cert_chain(tls.cert, tls.key)
    return context
