"""The lag model: a hidden Markov model over lags, banded scores, attention, calibration, losses, session tracking."""
