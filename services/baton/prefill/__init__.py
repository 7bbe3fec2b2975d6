"""The prefill service: extends prompts, emits the first token, offers the KV cache to a decode worker."""
