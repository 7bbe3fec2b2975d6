"""What prefill, decode and unified workers share: the engine's thread, router streams, frames, assembly.

The roles differ in one object, the handoff desk (`desk.py`): prefill offers pages, decode fetches them, unified does
neither.
"""
