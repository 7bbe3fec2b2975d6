"""The KV agent: a worker's data plane. It serves its pool to other agents and reads pages from theirs."""
