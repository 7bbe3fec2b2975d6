"""Stubs generated from `proto/baton/rpc/v1` (`make proto`); never edited by hand."""
