"""Decoders of one contract. The registry is imported with any of them, so that every decoder can be read from disk."""

import neurofuse.decoders.registry  # noqa: F401
