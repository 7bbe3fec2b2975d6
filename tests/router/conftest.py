from __future__ import annotations

from hypothesis import settings

# Shared machines pause: an example's time says nothing.
settings.register_profile("baton", deadline=None)
settings.load_profile("baton")
