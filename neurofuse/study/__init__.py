"""Studies: decoders x kinds of jitter x levels x seeds on one recording, and the critical level of each."""
