"""In: the name of a channel or a matrix. Out: a guess whether it is spikes, LFP, movement or other."""

from __future__ import annotations

import re

from data_loaders.formats import Role

# Whole words, after splitting at case changes, digits and punctuation. "acc" is left out on purpose: as a
# channel name it is more often the anterior cingulate cortex than an accelerometer.
BEHAVIOUR_WORDS = frozenset(
    (
        *("eye", "gaze", "pupil", "hand", "finger", "thumb", "wrist", "elbow", "arm", "mov", "move"),
        *("movement", "force", "grip", "joy", "joystick", "cursor", "target", "lever", "wheel"),
        *("lick", "whisk", "whisker", "pos", "position", "vel", "velocity", "speed", "accel"),
        *("acceleration", "angle", "torque", "pressure", "treadmill", "pedal", "kin", "kinematics"),
        *("emg", "eog", "eogv", "eogh", "heog", "veog", "ecg", "ekg", "resp", "respi"),
        *("respiration", "gsr"),
    )
)
AUX_WORDS = frozenset(
    (
        *("sync", "sy", "trig", "trigger", "ttl", "stim", "status", "photodiode", "diode", "ainp"),
        *("adc", "aux", "xa", "xd", "ma", "mn", "analog", "din", "dout"),
    )
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_SPIKES = re.compile(
    r"^(.*_)?(spikes?|spike_?counts?|spike_?times?|counts|units|spike_?trains?|neural_data)$", re.I
)
_LFP = re.compile(r"^(.*_)?(lfps?|ecog|ieeg|seeg|eeg)$", re.I)
_TIME = re.compile(r"^(time|times|t|ts|tvec|timestamps?|time_s|time_?axis|bin_?times?)$", re.I)
# "pos_t", "position/timestamps", "vel_time": the time axis of one item, recognised by its name.
_TIME_OF = re.compile(r"^(.+?)[_./](time|times|t|ts|timestamps?|time_s)$", re.I)


def words(name: str) -> list[str]:
    """A name's words in lower case.

    Examples
    --------
    >>> words("HandXcm"), words("MOV_RIGHT"), words("ainp9")
    (['hand', 'xcm'], ['mov', 'right'], ['ainp'])
    """
    return [w.lower() for w in _WORD.findall(name)]


def is_behaviour(name: str) -> bool:
    """Whether a channel measures the body, not the brain, by its name."""
    return bool(BEHAVIOUR_WORDS & set(words(name)))


def is_auxiliary(name: str) -> bool:
    """Whether a channel is an auxiliary or digital input, not an electrode, by its name."""
    return bool(AUX_WORDS & set(words(name)))


def is_time(name: str) -> bool:
    """Whether an array holds times, by the last part of its name."""
    return bool(_TIME.match(re.split(r"[/.]", name)[-1]))


def times_of(name: str) -> str | None:
    """The item a time vector belongs to by name: "pos_time" belongs to "pos"."""
    found = _TIME_OF.match(name)
    return found.group(1) if found else None


def channel_role(name: str) -> Role:
    """Role of a sampled channel."""
    if is_behaviour(name):
        return "movement"
    return "other" if is_auxiliary(name) else "lfp"


def matrix_role(name: str) -> Role:
    """Role of a matrix or list in a plain file, from its name."""
    last = re.split(r"[/.]", name)[-1]
    if _SPIKES.match(last):
        return "spikes"
    if is_time(name) or times_of(name):
        return "other"
    if _LFP.match(last):
        return "lfp"
    return "movement" if is_behaviour(last) else "other"
