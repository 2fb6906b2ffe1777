"""In: a recording and settings. Out: its tokens, and training, validation and test windows.

The one place where a recording becomes what decoders take: bad channels are left out, units may be split into two
systems, a known error may be planted, LFP becomes features, streams become tokens, tokens are cut into windows. Decode,
every cell of a study, and predict take the same steps; align stops at features.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from neurofuse.config import (
    MAX_LAG_S,
    WINDOW_S,
    DecodeConfig,
    FeatureConfig,
    PlantedSettings,
    Settings,
    SplitSettings,
    StudyConfig,
)
from neurofuse.decoders.base import Decoder
from neurofuse.decoders.registry import check_options
from neurofuse.errors import NeurofuseError, RecordingError
from neurofuse.features import clean_lfp, lfp_features
from neurofuse.jitters.jitter import Chain, Jitter, LagTruth, compose
from neurofuse.jitters.kinds import parse_jitter
from neurofuse.jitters.lag_laws import LagJitter, NoLag
from neurofuse.nets.device import check_device
from neurofuse.recording import Recording, Signal, Spikes, Stream, separate_lfp, split_units
from neurofuse.tokens import FINE_STEP_S, Tokens, anchor_clock, tokenize
from neurofuse.windows import Split, split_windows

SHORTEST_WINDOW_S = 0.2
# Data this far from the movement is left out; far more than any window reads.
MARGIN_S = 60.0
# An axis whose spread falls below this share of what it was in training hardly moves.
STILL_SHARE = 0.05
# With less data than this, scores mean little.
LEAST_TRAIN_S, LEAST_TEST_S = 60.0, 20.0


@dataclass(frozen=True)
class Generators:
    """Sources of randomness: which units are split off, what a jitter draws, which lags windows get."""

    units: np.random.Generator
    jitter: np.random.Generator
    windows: np.random.Generator

    @classmethod
    def of(cls, seed: int) -> Generators:
        """One generator for all three."""
        rng = np.random.default_rng([seed, 11])
        return cls(rng, rng, rng)


@dataclass(frozen=True, eq=False)
class CleanRecording:
    """A recording that can be decoded, its bad channels left out.

    Parameters
    ----------
    recording : Recording
    quality : list of dict
        One entry per LFP channel, JSON-safe.
    warnings : tuple of str
    """

    recording: Recording
    quality: list[dict[str, Any]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Tokenized:
    """A recording as tokens.

    Parameters
    ----------
    recording : Recording
        After the split of units and the planted error, before features.
    tokens : Tokens
    injected : LagJitter or None
        A lag law that windows draw from; see `neurofuse.windows`.
    truths : dict of clock -> LagTruth
        Lags planted into the recording itself.
    features : FeatureConfig
        As the features were taken.
    """

    recording: Recording
    tokens: Tokens
    injected: LagJitter | None
    truths: dict[str, LagTruth]
    features: FeatureConfig

    @property
    def clock_truths(self) -> tuple[LagTruth, ...]:
        """The planted lag of every clock but the anchor, zero for those that were left as they are."""
        if not self.truths:
            return ()
        some = next(iter(self.truths.values()))
        none = np.zeros_like(some.lag_s)
        return tuple(
            self.truths.get(c.clock, LagTruth(c.clock, some.time_s, none, "none"))
            for c in self.tokens.clocks[1:]
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """A recording ready to be decoded.

    Parameters
    ----------
    tokenized : Tokenized
    split : Split
        Training, validation and test windows.
    quality : list of dict
    warnings : tuple of str
    seconds : dict of stage -> float
    """

    tokenized: Tokenized
    split: Split
    quality: list[dict[str, Any]]
    warnings: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def tokens(self) -> Tokens:
        """The tokens that windows were cut from."""
        return self.tokenized.tokens

    @property
    def recording(self) -> Recording:
        """What was decoded: after the planted error, before features."""
        return self.tokenized.recording


def prepare_recording(
    recording: Recording, *, config: DecodeConfig | None = None, generators: Generators | None = None
) -> Prepared:
    """Turn a recording with movement into windows for decoders.

    Parameters
    ----------
    recording : Recording
    config : DecodeConfig, optional
    generators : Generators, optional
        By default made from the seed of the configuration.

    Returns
    -------
    Prepared

    Raises
    ------
    NeurofuseError
        If the recording cannot be decoded; the sentence states why and what would help.
    """
    config = config or DecodeConfig()
    generators = generators or Generators.of(config.seed)
    seconds: dict[str, float] = {}
    with timed(seconds, "features"):
        clean = clean_recording(recording, config)
        parted = with_two_clocks(clean.recording, config, parsed(config.jitter), rng=generators.units)
    tokenized = tokens_of(parted, config, parsed(config.jitter), rng=generators.jitter, seconds=seconds)
    warnings = [*_movement_alone(tokenized.recording), *clean.warnings]
    with timed(seconds, "tokens"):
        split, shorter = windows_of(tokenized, config, rng=generators.windows)
        warnings += shorter + _check_moving(split) + _little_data(split)
    return Prepared(tokenized, split, clean.quality, tuple(warnings), seconds)


def check_names(config: Settings) -> None:
    """Refuse decoders, options, jitters and devices that do not exist.

    Raises
    ------
    NeurofuseError
        With what there is to choose from.
    """
    if isinstance(config, DecodeConfig):
        check_options(config.decoder, config.options)
    if isinstance(config, StudyConfig):
        for name, options in config.choices.values():
            check_options(name, options)
        _law_or_none(config.base_lag)
    if isinstance(config, PlantedSettings):
        parsed(config.jitter)
    check_device(config.device)


def parsed(jitter: str | None) -> Jitter | None:
    """The jitter a setting names; None where there is none."""
    return None if jitter is None else parse_jitter(jitter)


def _law_or_none(text: str) -> None:
    if not isinstance(parse_jitter(text), LagJitter):
        raise NeurofuseError(f"base_lag (--base-lag) must be a lag such as lag:0.2, or none, got '{text}'.")


def clean_recording(
    recording: Recording, settings: SplitSettings, *, fitted: Decoder | None = None
) -> CleanRecording:
    """Refuse what cannot be decoded; leave out bad channels and what lies far from the movement.

    Parameters
    ----------
    recording : Recording
    settings : SplitSettings
    fitted : Decoder, optional
        A decoder that will predict from the recording: its channels are kept, bad or not, and movement may be missing.

    Raises
    ------
    NeurofuseError
        The sentence states what is missing and what would help.
    """
    if fitted is None:
        _check_decodable(recording)
        _check_overlap(recording)
        recording = _near_movement(recording)
    known = None if fitted is None else _known_channels(fitted)
    return without_bad_channels(recording, causal=settings.causal, keep=known)


def without_bad_channels(
    recording: Recording, *, causal: bool, keep: Collection[str] | None = None
) -> CleanRecording:
    """LFP at the rate that features need, its bad channels left out.

    Parameters
    ----------
    recording : Recording
    causal : bool
        Resample broadband causally.
    keep : collection of str, optional
        Names of the channels to keep instead, bad or not.
    """
    streams: list[Stream] = []
    quality: list[dict[str, Any]] = []
    warnings: list[str] = []
    for stream in recording.streams:
        if not isinstance(stream, Signal) or stream.kind != "lfp":
            streams.append(stream)
            continue
        stream, table = clean_lfp(stream, causal=causal, keep=keep)
        quality += [_json_row(row) for row in table.to_dict("records")]
        bad = table[table["bad"]]
        if len(bad):
            names = "; ".join(f"{n} ({w})" for n, w in zip(bad["name"], bad["why"], strict=True))
            fate = "left out" if keep is None else "found bad"
            warnings.append(f"{len(bad)} of {len(table)} channels of '{stream.name}' were {fate}: {names}.")
        streams.append(stream)
    return CleanRecording(recording.but(streams=tuple(streams)), quality, tuple(warnings))


def _known_channels(fitted: Decoder) -> set[str]:
    """Names of the LFP channels that a decoder was fitted on."""
    # A feature is named `stream/channel band`.
    return {f.partition("/")[2].rpartition(" ")[0] for clock in fitted.features_ for f in clock}


def with_two_clocks(
    recording: Recording,
    settings: Settings,
    jitter: Jitter | None,
    *,
    rng: np.random.Generator,
    required: bool = False,
) -> Recording:
    """Give part of a recording a clock of its own, as the settings require or because a clock must be moved.

    Parameters
    ----------
    recording : Recording
    settings : Settings
    jitter : Jitter or None
        One that moves a clock needs a second one: the LFP gets it.
    rng : numpy Generator
        Draws the units that are split off.
    required : bool
        Two clocks are needed whatever the jitter.
    """
    if settings.split_units is not None:
        recording = split_units(recording, settings.split_units, rng=rng)
    moves = required or any(s.acts_on == "clock" and not isinstance(s, NoLag) for s in steps_of(jitter))
    if moves and len([c for c in recording.clocks if recording.on(c)]) < 2:
        recording = separate_lfp(recording)
    return recording


def steps_of(jitter: Jitter | None) -> tuple[Jitter, ...]:
    """The jitters that a jitter is composed of, in order."""
    if jitter is None:
        return ()
    return jitter.steps if isinstance(jitter, Chain) else (jitter,)


def injected_and_planted(jitter: Jitter | None) -> tuple[LagJitter | None, Jitter | None]:
    """Part a jitter into the lag law that windows draw from, and what is done to the recording itself.

    Windows draw lags anew at every pass of training, so a lag law is never planted into the recording.

    Raises
    ------
    NeurofuseError
        If there is more than one lag law.
    """
    steps = [s for s in steps_of(jitter) if not isinstance(s, NoLag)]
    laws = [s for s in steps if isinstance(s, LagJitter)]
    if len(laws) > 1:
        raise NeurofuseError(
            f"jitter '{jitter}' holds {len(laws)} lag laws; give one, windows draw their lags from it."
        )
    rest = [s for s in steps if not isinstance(s, LagJitter)]
    return (laws[0] if laws else None), (compose(rest) if rest else None)


def tokens_of(
    recording: Recording,
    settings: SplitSettings,
    jitter: Jitter | None,
    *,
    rng: np.random.Generator,
    known: Mapping[str, Signal] | None = None,
    seconds: dict[str, float] | None = None,
) -> Tokenized:
    """Plant an error, take features, tokenize.

    Parameters
    ----------
    recording : Recording
        Clean, with as many clocks as the jitter needs.
    settings : SplitSettings
    jitter : Jitter or None
    rng : numpy Generator
    known : mapping of stream name -> Signal, optional
        Features of streams as they were before the jitter; those that it left alone are not computed again.
    seconds : dict, optional
        Gets the time that "features" and "tokens" took.
    """
    seconds = {} if seconds is None else seconds
    law, planted = injected_and_planted(jitter)
    if law is not None:
        law.targets(recording)
        check_reach(law, recording, settings)
    before, truths = recording, dict[str, LagTruth]()
    with timed(seconds, "features"):
        if planted is not None:
            recording, truth = planted.jitter(recording, rng=rng)
            truths = truth.lags(*recording.span_s)
        options = feature_options(settings)
        untouched = {s.name: s for s in before.streams}
        kept = {k: v for k, v in (known or {}).items() if recording[k] is untouched.get(k)}
        featured = featured_recording(recording, options, known=kept)
    with timed(seconds, "tokens"):
        tokens = tokenized_recording(featured, token_s=settings.token_s)
    return Tokenized(recording, tokens, law, truths, options)


def feature_options(settings: SplitSettings) -> FeatureConfig:
    """Features as the settings ask for them: causal or not, mains removed or not."""
    line_hz = settings.line_hz or settings.features.line_hz
    return replace(settings.features, causal=settings.causal, line_hz=line_hz)


def featured_recording(
    recording: Recording, options: FeatureConfig, *, known: Mapping[str, Signal] | None = None
) -> Recording:
    """The recording with features in the place of LFP.

    Parameters
    ----------
    recording : Recording
    options : FeatureConfig
    known : mapping of stream name -> Signal, optional
        Features that are there already.
    """
    known = known or {}
    streams = tuple(
        known[s.name]
        if s.name in known
        else lfp_features(s, config=options)
        if isinstance(s, Signal) and s.kind == "lfp"
        else s
        for s in recording.streams
    )
    return recording.but(streams=streams)


def tokenized_recording(featured: Recording, *, token_s: float | None, fine_s: float = FINE_STEP_S) -> Tokens:
    """The tokens of a recording whose LFP are features; see `neurofuse.tokens.tokenize`."""
    return tokenize(featured, token_s=token_s, fine_s=fine_s)


def lfp_features_of(recording: Recording, settings: SplitSettings) -> dict[str, Signal]:
    """Features of every LFP stream by name, to be used again where a jitter leaves the stream alone."""
    options = feature_options(settings)
    return {
        s.name: lfp_features(s, config=options)
        for s in recording.streams
        if isinstance(s, Signal) and s.kind == "lfp"
    }


def check_reach(law: LagJitter, recording: Recording, settings: Settings) -> None:
    """Refuse a lag beyond the search range, where it would be clipped and so not be the one that was planted."""
    max_lag_s = MAX_LAG_S if settings.max_lag_s is None else settings.max_lag_s
    level_s = law.reach_s(recording.span_s[1] - recording.span_s[0])
    if level_s > max_lag_s * (1 + 1e-6):
        raise NeurofuseError(
            f"jitter '{law}' moves the clock by {level_s:.3g} s, beyond the search range of +-{max_lag_s:g} s; "
            "lower its level or raise --max-lag."
        )


def windows_of(
    tokenized: Tokenized, settings: SplitSettings, *, rng: np.random.Generator
) -> tuple[Split, list[str]]:
    """Cut training, validation and test windows; shorten a window that no setting fixes where there is no room.

    Returns
    -------
    split : Split
    warnings : list of str

    Raises
    ------
    NeurofuseError
        If no window fits; the sentence states how much is missing.
    """
    tokens, truths = tokenized.tokens, tokenized.clock_truths
    window_s = WINDOW_S if settings.window_s is None else settings.window_s
    max_lag_s = MAX_LAG_S if settings.max_lag_s is None else settings.max_lag_s
    attempts = [(window_s, max_lag_s)]
    # A lag that is planted must stay inside the search range.
    fixed = settings.max_lag_s is not None or tokenized.injected is not None or bool(truths)
    if settings.window_s is None:
        shorter = window_s * 0.8 ** np.arange(1, 14)
        attempts += [
            (w, max_lag_s if fixed else min(max_lag_s, w / 3))
            for w in np.round(shorter, 3).tolist()
            if w >= max(SHORTEST_WINDOW_S, 4 * tokens.token_s) and (not fixed or w > max_lag_s)
        ]
    failure: NeurofuseError | None = None
    for window_s, max_lag_s in attempts:
        try:
            found = split_windows(
                tokens,
                window_s=window_s,
                max_lag_s=max_lag_s,
                train=settings.train,
                validation=settings.validation,
                jitter=tokenized.injected,
                truths=truths,
                rng=rng,
            )
        except NeurofuseError as error:
            # The last and shortest states best how much is missing.
            failure = error
            continue
        short = [
            f"The recording has no room for windows of {attempts[0][0]:g} s; windows of {window_s:.2g} s were cut."
        ]
        return found, short if failure is not None else []
    assert failure is not None
    raise failure


def _check_decodable(recording: Recording) -> None:
    if recording.movement is None:
        raise NeurofuseError(
            f"recording '{recording.name}' has no movement to decode; 'neurofuse info' lists what a file holds, "
            "--movement NAME or PATH::NAME takes it."
        )
    if not recording.streams:
        raise NeurofuseError(
            f"recording '{recording.name}' has neither spikes nor LFP; name them with --spikes or --lfp."
        )
    populations = [s for s in recording.streams if isinstance(s, Spikes) or s.kind == "counts"]
    if populations and recording.n_units < 2:
        raise NeurofuseError(
            f"recording '{recording.name}' has {recording.n_units} unit(s); a population code needs at least two "
            "(leave spikes out with --spikes none to decode from LFP alone)."
        )
    flat = [
        a for k, a in enumerate(recording.movement.axes) if np.ptp(recording.movement.data.values[:, k]) == 0
    ]
    if flat:
        raise RecordingError(
            f"movement axis '{flat[0]}' never changes; there is nothing to decode, leave it out."
        )


def _check_overlap(recording: Recording) -> None:
    """Refuse clocks that share no time, with the numbers that show it."""
    spans = {
        f"clock '{clock}'": (min(s.start_s for s in streams), max(s.stop_s for s in streams))
        for clock in recording.clocks
        if (streams := recording.on(clock))
    }
    spans["the movement"] = recording.span_s
    late = max(spans, key=lambda name: spans[name][0])
    early = min(spans, key=lambda name: spans[name][1])
    if spans[late][0] >= spans[early][1]:
        raise NeurofuseError(
            f"{late} ({spans[late][0]:.2f} to {spans[late][1]:.2f} s) and {early} ({spans[early][0]:.2f} to "
            f"{spans[early][1]:.2f} s) share no time; the clocks may start at different zeros, so shift one of them."
        )


def _near_movement(recording: Recording) -> Recording:
    """Leave out what was recorded long before or after the movement: it adds nothing and fills the memory."""
    start_s, stop_s = (recording.span_s[0] - MARGIN_S, recording.span_s[1] + MARGIN_S)
    if all(s.start_s >= start_s and s.stop_s <= stop_s for s in recording.streams):
        return recording
    return recording.between(start_s, stop_s)


def _movement_alone(recording: Recording) -> list[str]:
    """A warning where nothing neural shares the clock of the movement: that lag is taken to be zero."""
    if recording.on(recording.reference):
        return []
    return [
        f"Movement is on clock '{recording.reference}', which no spikes or LFP share; it is taken to agree with "
        f"clock '{anchor_clock(recording)}', and no lag between the two is searched."
    ]


def _check_moving(split: Split) -> list[str]:
    """Refuse movement that stands still where it is trained or scored on; warn where it nearly does."""
    warnings = []
    spread = {}
    for name, windows in (("training", split.train), ("test", split.test)):
        rows = np.unique(windows.first[:, None] + np.arange(windows.n_steps))
        values = windows.tokens.movement[rows].astype(np.float64)
        begin_s, end_s = windows.tokens.time_s(rows[[0, -1]])
        for axis, range_, std in zip(
            windows.tokens.axes, np.ptp(values, axis=0), values.std(axis=0), strict=True
        ):
            if range_ == 0:
                raise NeurofuseError(
                    f"movement axis '{axis}' never changes in the {name} stretch ({begin_s:.0f} to {end_s:.0f} s), so "
                    "nothing can be learned or scored there; give a recording in which it moves throughout."
                )
            spread[name, axis] = std
    for axis in split.test.tokens.axes:
        share = spread["test", axis] / spread["training", axis]
        if share < STILL_SHARE:
            warnings.append(
                f"Movement axis '{axis}' hardly moves in the test stretch ({100 * share:.2g} % of its spread in "
                "training), so its R² means little."
            )
    return warnings


def _little_data(split: Split) -> list[str]:
    """A warning where there is too little data for the scores to mean much."""
    token_s = split.test.tokens.token_s
    train_s, test_s = (
        np.unique(w.first[:, None] + np.arange(w.n_steps)).size * token_s for w in (split.train, split.test)
    )
    if train_s >= LEAST_TRAIN_S and test_s >= LEAST_TEST_S:
        return []
    return [
        f"{train_s:.1f} s of training and {test_s:.1f} s of test data are too little to trust these scores; "
        f"record at least {LEAST_TRAIN_S:g} s and {LEAST_TEST_S:g} s."
    ]


def _json_row(row: dict[Any, Any]) -> dict[str, Any]:
    """A row of a table as JSON takes it."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        value = value.item() if isinstance(value, np.generic) else value
        out[str(key)] = None if isinstance(value, float) and not np.isfinite(value) else value
    return out


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall time of a block to a stage."""
    start = time.perf_counter()
    yield
    seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - start, 3)
