"""Train the bundled model, or its draft, on generated conversations: `python -m tools.bundled_model.train`.

Writes its state to a folder every few minutes and goes on from there when started again. The same recipe, seed and
kind of machine give the same model up to numerical noise, interrupted or not.
"""

from __future__ import annotations
