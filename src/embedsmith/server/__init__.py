"""The cache over HTTP: an OpenAI-compatible caching proxy, an embeddings endpoint, metrics and a dashboard."""
