"""In: a decoder class, and values of its settings. Out: nothing, or one sentence on what cannot be used."""

from __future__ import annotations

from inspect import Parameter, signature
from math import inf
from numbers import Integral, Real
from typing import Any

from neurofuse.decoders.base import Decoder
from neurofuse.errors import NeurofuseError

# Whole numbers that may be zero.
MAY_BE_ZERO = ("seed", "n_derivatives")
# Numbers with a sign: which clock is the faster one.
MAY_BE_NEGATIVE = ("skew_ppm",)


def check_class(cls: Any) -> None:
    """Refuse a class that could not be built by name, cloned or read from disk.

    Raises
    ------
    NeurofuseError
        If it is not a subclass of `Decoder`, has no name, or does not take its settings as keywords with a default and
        store them as given.
    """
    if not (isinstance(cls, type) and issubclass(cls, Decoder)):
        raise NeurofuseError(f"{getattr(cls, '__name__', cls)!r} is not a subclass of neurofuse.Decoder.")
    if not (isinstance(cls.name, str) and cls.name):
        raise NeurofuseError(f"{cls.__name__} has no name; set its class attribute `name`.")
    own = list(signature(cls.__init__).parameters.values())[1:] if cls.__init__ is not object.__init__ else []
    own = [p for p in own if p.kind is not Parameter.VAR_KEYWORD]
    for p in own:
        if p.kind is not Parameter.KEYWORD_ONLY or p.default is Parameter.empty:
            raise NeurofuseError(
                f"{cls.__name__}: the setting '{p.name}' must be keyword-only and have a default."
            )
    made = cls()
    for p in own:
        if getattr(made, p.name, Parameter.empty) is not p.default:
            raise NeurofuseError(f"{cls.__name__} must store its setting as given: self.{p.name} = {p.name}.")
    try:
        cls(**made.get_params())
    except (TypeError, AttributeError) as error:
        raise NeurofuseError(
            f"{cls.__name__} must pass the settings of the class it extends on to it, as **more ({error})."
        ) from None


def check_value(cls: type[Decoder], option: str, value: Any) -> None:
    """Refuse a value that is unlike the default of its option.

    Numbers of this package's decoders are not negative; those that another package adds may be.

    Raises
    ------
    NeurofuseError
        If the value is of another type, or out of range.
    """
    default = cls.options()[option]
    own = next(
        kind for kind in cls.__mro__ if issubclass(kind, Decoder) and kind.__module__.startswith("neurofuse.")
    )
    signed = option in MAY_BE_NEGATIVE or option not in own.options()
    if problem := _misfit(value, default, -inf if signed else float(option not in MAY_BE_ZERO)):
        raise NeurofuseError(f"decoder '{cls.name}': {option} must be {problem}, got {value!r}.")


def _misfit(value: Any, default: Any, least_count: float) -> str:
    """What a value should be; empty if it is that."""
    if value is None or default is Parameter.empty or value == default:
        return ""
    least = min(least_count, 0.0)
    sign = " of zero or more" if least == 0 else ""
    if isinstance(default, bool):
        fits, words = isinstance(value, bool), "True or False"
    elif isinstance(default, str):
        fits, words = isinstance(value, str), "a word"
    elif isinstance(default, int):
        names = {1.0: "a positive whole number", 0.0: "a whole number of zero or more"}
        fits, words = _is_number(value, Integral, least_count), names.get(least_count, "a whole number")
    elif isinstance(default, (tuple, list)):
        many = isinstance(value, (tuple, list)) and len(value) > 0
        fits, words = (
            many and all(_is_number(x, Real, least) for x in value),
            f"several numbers{sign}, such as (1, 4)",
        )
    else:
        fits, words = _is_number(value, Real, least), f"a number{sign}"
    return "" if fits else words


def _is_number(value: Any, kind: Any, least: float) -> bool:
    """Whether a value is a finite number of a kind, and not too small."""
    return isinstance(value, kind) and not isinstance(value, bool) and bool(least <= value < inf)
