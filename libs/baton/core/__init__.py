"""The nouns of Baton: errors, attempts, sampling parameters, block hashes, KV layouts. Standard library only."""
