"""The decoders: one contract, a family of ways to fuse streams whose clocks may disagree."""
