"""Pieces for tests of Baton and of programs that use it: toy workers, a private Redis server."""
