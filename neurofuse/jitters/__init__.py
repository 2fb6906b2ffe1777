"""Jitters: functions from a recording to a misaligned recording, and the truth of what was done to it."""
