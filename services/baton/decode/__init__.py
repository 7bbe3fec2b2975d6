"""The decode service: fetches the KV cache of a prompt from a prefill worker, then decodes."""
