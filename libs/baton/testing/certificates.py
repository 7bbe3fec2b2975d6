"""A throw-away certificate authority, and certificates of it, as PEM files."""

from __future__ import annotations

from pathlib import Path

import trustme

HOSTS = ("127.0.0.1", "localhost", "baton.internal")


class Authority:
    """One CA, whose certificate is at `ca`. Files are written below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.ca = folder / "ca.pem"
        folder.mkdir(parents=True, exist_ok=True)
        self._ca.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """(certificate, key) for `hosts`, by default those of this machine. What was issued as `name` is replaced."""
        issued = self._ca.issue_cert(*(hosts or HOSTS))
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        drafts = [path.with_suffix(path.suffix + ".new") for path in (cert, key)]
        drafts[0].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(drafts[1]))
        for draft, path in zip(drafts, (cert, key), strict=True):
            draft.replace(path)
        return cert, key
