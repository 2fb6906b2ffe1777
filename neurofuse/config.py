"""In: settings as a user gives them. Out: frozen settings of a decode, a study or an alignment, their numbers checked.

Every setting stands here once: name, default, flag of the command line, and one line of help. Numbers are checked when
a configuration is made, so Python and the command line refuse the same values with the same sentence. Names (of
decoders, jitters, devices) are checked by the modules that define them, see `neurofuse.prepare.check_names`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from math import inf, isfinite
from typing import Any, Literal

from neurofuse.errors import NeurofuseError

# Windows are this long, and lags are searched this far, where nothing is given and the recording has room.
WINDOW_S, MAX_LAG_S = 3.0, 0.5
# The same for an alignment of whole sessions.
ALIGN_WINDOW_S, ALIGN_MAX_LAG_S = 10.0, 5.0
MAINS_HZ = (50, 60)

Protocol = Literal["train-matched", "test-only"]
PROTOCOLS: tuple[Protocol, ...] = ("train-matched", "test-only")
AlignMethod = Literal["learned", "ridge", "xcorr", "gcc-phat", "pulses"]
ALIGN_METHODS: tuple[AlignMethod, ...] = ("learned", "ridge", "xcorr", "gcc-phat", "pulses")
ClockModel = Literal["offset", "linear", "piecewise", "free"]
CLOCK_MODELS: tuple[ClockModel, ...] = ("offset", "linear", "piecewise", "free")

# A decoder by name, or with options: ("tracked", {"width": 32}).
DecoderChoice = str | tuple[str, Mapping[str, Any]]


def setting(default: Any, flag: str, help: str, *, check: str = "") -> Any:
    """A field with its flag on the command line, its help, and what its value must be.

    Parameters
    ----------
    default : object
        A value, or a callable that makes one.
    flag : str
        Empty for what Python alone can set.
    help : str
    check : {"", "positive", "zero or more", "count", "whole", "mains", "share", "choice"}
    """
    how = {"default_factory": default} if callable(default) else {"default": default}
    return field(**how, metadata={"flag": flag, "help": help, "check": check})


@dataclass(frozen=True)
class FeatureConfig:
    """Which features are taken from the LFP, and how.

    The default bands are the low-frequency ("local motor") potential, beta, and two gamma bands, as in
    Flint et al. (2012) J. Neural Eng. 9:046006 and Stavisky et al. (2015) J. Neural Eng. 12:036009.
    """

    # (name, low Hz, high Hz). A band that begins at 0 is the low-passed potential itself, with its sign;
    # every other band is power.
    bands: tuple[tuple[str, float, float], ...] = (
        ("lmp", 0.0, 5.0),
        ("beta", 13.0, 30.0),
        ("gamma", 30.0, 70.0),
        ("high_gamma", 70.0, 150.0),
    )
    # 50 or 60: notch out the mains and its harmonics. None: leave them.
    line_hz: float | None = None
    # Features a second. The input rate is divided by a whole number, so the true rate may be a little higher.
    rate_hz: float = 100.0
    # Power is averaged over this long. Longer is steadier and later (by half of it).
    smooth_s: float = 0.05
    # Natural logarithm of power, which is nearer to normal and makes gain an offset; False: power itself.
    log_power: bool = True
    # Use only samples at or before the stamp of a feature. False: zero phase, for work that may look ahead.
    causal: bool = True
    # Order of the Butterworth filters (a band-pass has twice as many poles). Higher is sharper and later.
    order: int = 3

    def __post_init__(self) -> None:
        bands = tuple((str(name), float(lo), float(hi)) for name, lo, hi in self.bands)
        object.__setattr__(self, "bands", bands)
        names = [name for name, _, _ in bands]
        if not bands:
            raise NeurofuseError("no band was given; name at least one, such as ('beta', 13, 30).")
        if len(set(names)) < len(names):
            raise NeurofuseError(f"two bands share a name in {names}; give every band a name of its own.")
        for name, lo, hi in bands:
            if not 0 <= lo < hi < inf:
                raise NeurofuseError(f"band '{name}' is {lo:g} to {hi:g} Hz; it needs 0 <= low < high.")
        if self.line_hz is not None and not 0 < self.line_hz < inf:
            raise NeurofuseError(f"line_hz must be None, or the mains' 50 or 60, got {self.line_hz:g}.")
        if not 0 < self.rate_hz < inf:
            raise NeurofuseError(f"the feature rate must be positive, got {self.rate_hz:g} Hz.")
        if not 0 <= self.smooth_s < inf:
            raise NeurofuseError(f"smooth_s must not be negative, got {self.smooth_s:g} s.")
        if not 1 <= self.order <= 8:
            raise NeurofuseError(f"the filter order must be 1 to 8, got {self.order}.")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decode, study and align share."""

    token_s: float | None = setting(
        None,
        "--token",
        "Bin width of a token, seconds (0.02, or the recording's own bins).",
        check="positive",
    )
    window_s: float | None = setting(
        None, "--window", "Length of a window, seconds (3; align: 10).", check="positive"
    )
    max_lag_s: float | None = setting(
        None, "--max-lag", "Largest lag searched, seconds (0.5; align: 5).", check="positive"
    )
    drift: float | None = setting(
        None, "--drift", "Prior of the lag: random walk, seconds per root second.", check="zero or more"
    )
    jumps: float | None = setting(
        None, "--jumps", "Prior of the lag: jumps per second.", check="zero or more"
    )
    skew_ppm: float | None = setting(
        None, "--skew", "Prior of the lag: steady skew between the clocks, ppm.", check="zero or more"
    )
    split_units: int | None = setting(
        None,
        "--split-units",
        "Keep so many units on the first clock, the others get their own.",
        check="count",
    )
    line_hz: float | None = setting(
        None, "--line-hz", "Mains frequency to remove from the LFP, 50 or 60.", check="mains"
    )
    n_steps: int | None = setting(None, "--steps", "Largest number of gradient steps.", check="count")
    seed: int = setting(0, "--seed", "Random seed.", check="whole")
    device: str = setting("auto", "--device", "cpu, cuda, cuda:NUMBER or auto (a study: auto is cpu).")

    def __post_init__(self) -> None:
        for one in fields(self):
            check_number(one.name, getattr(self, one.name), one.metadata)
        if self.drift is not None and self.skew_ppm is not None:
            raise NeurofuseError(
                f"drift (--drift) {self.drift:g} and skew_ppm (--skew) {self.skew_ppm:g} are both given, and a skew is "
                "converted to a drift; give one."
            )
        if self.max_lag_s is not None and self.max_lag_s >= self.longest_lag_s:
            raise NeurofuseError(
                f"the largest lag of {self.max_lag_s:g} s must be shorter than a window ({self.longest_lag_s:g} s); "
                "lower max_lag_s (--max-lag) or raise window_s (--window)."
            )

    @property
    def longest_lag_s(self) -> float:
        """Lags must stay below this: a window."""
        return WINDOW_S if self.window_s is None else self.window_s


@dataclass(frozen=True, kw_only=True)
class PlantedSettings(Settings):
    """Settings of work on one recording, which may be misaligned first."""

    jitter: str | None = setting(
        None,
        "--jitter",
        "KIND:LEVEL, a known error that is planted first: lag:0.3, walk:0.2, skew:300, noise:2; joined by '|'.",
    )


@dataclass(frozen=True, kw_only=True)
class SplitSettings(Settings):
    """Settings of work that trains a decoder on one part of a recording and scores it on another."""

    causal: bool = setting(False, "--causal", "Decode from the past alone.")
    # Shares of the movement's time; what is left is the test stretch.
    train: float = setting(0.7, "", "Share of the movement's time for training.", check="share")
    validation: float = setting(0.1, "", "Share of the movement's time for validation.", check="share")
    features: FeatureConfig = setting(FeatureConfig, "", "Features of the LFP.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.train + self.validation < 1 - 1e-9:
            raise NeurofuseError(
                f"shares of {self.train:g} for training and {self.validation:g} for validation leave nothing for the "
                "test; they must add up to less than 1."
            )


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(PlantedSettings, SplitSettings):
    """Settings of a decode; all of them are written into the metrics and the checkpoint."""

    decoder: str = setting(
        "tracked", "--decoder", "tracked, early, ridge, kalman ...; a wrong name lists all."
    )
    options: Mapping[str, Any] = setting(dict, "", "Options of the decoder, such as {'width': 32}.")
    baseline: bool = setting(True, "", "Fit a ridge on the same windows for comparison.")


# The lag under which alignment has to be found while something other than the lag is varied.
BASE_LAG = "lag:0.2"
# Decoders between which a gain is measured: (model - fixed) / (oracle - fixed).
FIXED, ORACLE = "early", "oracle"


@dataclass(frozen=True, kw_only=True)
class StudyConfig(SplitSettings):
    """What a study varies, and how it trains; all of it is written into the table."""

    decoders: Sequence[DecoderChoice] = setting(
        ("tracked", "softmax"), "", "Decoders by name, or (name, {option: value})."
    )
    # Settings other than the level may follow a kind, KIND:name=value.
    kinds: tuple[str, ...] = setting(("lag",), "", "Kinds of jitter, as in KIND:LEVEL.")
    levels: Mapping[str, tuple[float, ...]] = setting(
        dict, "", "Levels by kind; others get `n_levels` around the predicted critical level."
    )
    n_levels: int = setting(10, "", "Levels of kinds without given ones.", check="count")
    n_seeds: int = setting(5, "--seeds", "Repetitions with draws of their own.", check="count")
    protocols: tuple[str, ...] = setting(
        ("train-matched",),
        "",
        "train-matched: trained at every level; test-only: trained once, without the jitter.",
    )
    base_lag: str = setting(
        BASE_LAG, "--base-lag", "Lag that is planted while something other than a lag is varied, or none."
    )
    references: bool = setting(True, "", "Add early fusion and the oracle, between which a gain is measured.")
    bandwidth_hz: float | None = setting(
        None,
        "--bandwidth",
        "Bandwidth B of what the clocks share, Hz; +-1/(2B) is a hit (50 ms).",
        check="positive",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, given in (
            ("decoder", list(self.models)),
            ("jitter", self.kinds),
            ("protocol", self.protocols),
        ):
            if not given:
                raise NeurofuseError(f"a study needs at least one {what}; name one.")
            twice = sorted({g for g in given if list(given).count(g) > 1})
            if twice:
                raise NeurofuseError(f"{what} '{twice[0]}' is named twice; name each once.")
        for protocol in self.protocols:
            if protocol not in PROTOCOLS:
                raise NeurofuseError(
                    f"there is no protocol '{protocol}'; choose from {', '.join(PROTOCOLS)}."
                )
        unknown = sorted(set(self.levels) - set(self.kinds))
        if unknown:
            raise NeurofuseError(
                f"levels are given for '{unknown[0]}', which is not varied; varied are {', '.join(self.kinds)}."
            )
        for kind, levels in self.levels.items():
            if not levels or any(not 0 < x < inf for x in levels) or len(set(levels)) < len(levels):
                raise NeurofuseError(
                    f"levels of '{kind}' must be positive and differ, got "
                    f"{', '.join(f'{x:g}' for x in levels) or 'none'}."
                )

    @property
    def models(self) -> list[str]:
        """Labels of the decoders that were chosen, in order, without references."""
        return [label_of(choice) for choice in self.decoders]

    @property
    def choices(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Name and options of every decoder of the study by its label, references included."""
        more = (FIXED, ORACLE) if self.references else ()
        return {label_of(c): named(c) for c in (*self.decoders, *more)}


@dataclass(frozen=True, kw_only=True)
class AlignConfig(PlantedSettings):
    """Settings of an alignment of two clocks."""

    method: AlignMethod = setting(
        "learned", "--method", "learned, or a baseline: ridge, xcorr, gcc-phat, pulses.", check="choice"
    )
    model: ClockModel = setting(
        "piecewise",
        "--model",
        "What the clock may do: offset, linear, piecewise (with jumps) or free.",
        check="choice",
    )
    search_s: float = setting(
        0.5, "", "How far around the first clock the network searches, s.", check="positive"
    )
    clock: str | None = setting(None, "--clock", "The clock to align, where there are several.")
    use_movement: bool = setting(True, "", "Count movement as a signal of its clock.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, given, known in (
            ("method", self.method, ALIGN_METHODS),
            ("clock model", self.model, CLOCK_MODELS),
        ):
            if given not in known:
                raise NeurofuseError(f"there is no {name} '{given}'; choose one of {', '.join(known)}.")

    @property
    def longest_lag_s(self) -> float:
        """Lags of whole sessions may be longer than a window."""
        return inf


def named(choice: DecoderChoice) -> tuple[str, dict[str, Any]]:
    """Name and options of a chosen decoder.

    Raises
    ------
    NeurofuseError
        If the choice is neither a name nor a pair of a name and a mapping.
    """
    if isinstance(choice, str):
        return choice, {}
    try:
        name, options = choice
        return str(name), dict(options)
    except (TypeError, ValueError):
        raise NeurofuseError(
            f"a decoder is a name or (name, {{option: value}}), got {choice!r}; write ('tracked', {{'width': 32}})."
        ) from None


def label_of(choice: DecoderChoice) -> str:
    """The name of a chosen decoder, its options behind it: `tracked(width=32)`."""
    name, options = named(choice)
    inside = ", ".join(f"{k}={v}" for k, v in options.items())
    return f"{name}({inside})" if inside else name


def check_number(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """Refuse a value that no recording could satisfy, in one sentence that names the setting and its flag."""
    check, flag = metadata.get("check", ""), metadata.get("flag", "")
    if not check or check == "choice" or value is None:
        return
    known = f"{name} ({flag})" if flag else name
    needs = {
        "positive": ("a positive number", lambda x: 0 < x < inf),
        "zero or more": ("zero or more", lambda x: 0 <= x < inf),
        "count": ("a positive whole number", lambda x: x > 0 and int(x) == x),
        "whole": ("zero or a positive whole number", lambda x: x >= 0 and int(x) == x),
        "share": ("a share between 0 and 1", lambda x: 0 < x < 1),
        "mains": ("50 or 60", lambda x: x in MAINS_HZ),
    }
    words, fits = needs[check]
    is_number = isinstance(value, (int, float)) or hasattr(value, "__float__")
    number = float(value) if is_number and not isinstance(value, (str, bool)) else float("nan")
    if not (isfinite(number) and fits(number)):
        given = f"{number:g}" if isfinite(number) else repr(value)
        raise NeurofuseError(f"{known} must be {words}, got {given}.")


def flags(config: type[Settings]) -> dict[str, tuple[str, str, str, Any]]:
    """Flag, help, check and default of every setting that the command line offers, by name."""
    out = {}
    for one in fields(config):
        if one.metadata.get("flag"):
            default = one.default if one.default is not MISSING else None
            out[one.name] = (one.metadata["flag"], one.metadata["help"], one.metadata["check"], default)
    return out
