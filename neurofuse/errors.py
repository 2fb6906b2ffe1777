"""In: nothing. Out: the two errors that every module raises; importing them costs nothing."""


class NeurofuseError(ValueError):
    """A user's input cannot be used; the message states what is wrong, what was given, what would be right."""


class RecordingError(NeurofuseError):
    """A recording, or a part of one, that is not consistent."""
