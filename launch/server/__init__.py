"""The HTTP server: OpenAI's protocol over the batched engine."""
