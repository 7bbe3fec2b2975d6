"""Tiers below a worker's pool: blocks that left it, kept in bounded memory of its agent, then on disk."""
