"""The engine: models, paged KV pool, radix prefix cache, scheduler, sampling. Knows no gRPC and no services."""
