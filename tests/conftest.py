"""What holds for all tests: property tests draw the same examples every time.

`HYPOTHESIS_PROFILE=search pytest ...` looks further, with new examples at every run.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
