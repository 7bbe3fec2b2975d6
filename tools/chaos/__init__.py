"""Chaos: a real system under load, faults drawn from a seed, and a judge who compares every answer."""
