"""Kernels of Baton's own for CPUs: C++ that is compiled on first use, and what calls it."""
