"""How large the tiers of an agent may be."""

from __future__ import annotations

from dataclasses import dataclass

from baton.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TierLimits:
    """Settings of the tiers; 0 bytes = there is none. Raises ConfigError for a disk that has no folder, or no memory
    above it."""

    host_bytes: int = 0
    disk_path: str = ""
    disk_bytes: int = 0

    def __post_init__(self) -> None:
        if bool(self.disk_path) != bool(self.disk_bytes):
            raise ConfigError("a disk tier needs both disk_tier_path and disk_tier_bytes", param="disk_tier_path")
        if self.disk_bytes and not self.host_bytes:
            raise ConfigError(
                "a disk tier takes what leaves the host tier, and there is none: set host_tier_bytes",
                param="host_tier_bytes",
            )
