"""From raw text to an embedding model that knows the domain, with proof, and to the cache it serves."""

__version__ = "0.1.0"
