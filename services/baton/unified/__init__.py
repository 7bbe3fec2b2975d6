"""The unified service: prefill and decode in one pool, no handoff. The baseline of every claim about disaggregation."""
