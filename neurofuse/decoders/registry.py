"""In: a name. Out: the decoder of that name, of this package, of an installed one, or registered by `register_decoder`.

A package that defines decoders lists them among its entry points, and they are found wherever it is installed::

    [project.entry-points."neurofuse.decoders"]
    rate = "mypackage.rate:RateDecoder"
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from inspect import Parameter, signature
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from neurofuse.decoders.base import Decoder
from neurofuse.decoders.built_in import BUILT_IN
from neurofuse.decoders.checkpoint import read_checkpoint
from neurofuse.errors import NeurofuseError
from neurofuse.extensions import from_packages, same_definition

# Registered so far; those of installed packages join at the first call of `decoder_classes`.
DECODERS: dict[str, type[Decoder]] = {kind.name: kind for kind in BUILT_IN}
D = TypeVar("D", bound=type[Decoder])


def register_decoder(cls: D) -> D:
    """Make a class known by its `name`: to decoding, studies and checkpoints. A class decorator.

    Raises
    ------
    NeurofuseError
        If it is not a subclass of `Decoder`, its name is taken, or its settings are not keyword-only with a default,
        stored as given.
    """
    _check_class(cls)
    known = DECODERS.get(cls.name, cls)
    # A class that is defined again, as in a notebook, replaces itself.
    if not same_definition(known, cls):
        raise NeurofuseError(
            f"the name '{cls.name}' is taken by {known.__module__}.{known.__qualname__}; give {cls.__name__} another."
        )
    DECODERS[cls.name] = cls
    return cls


def decoder_classes() -> dict[str, type[Decoder]]:
    """Every decoder by name: of this package, of installed packages, and registered in this process."""
    _installed()
    return dict(DECODERS)


def registered_decoders() -> tuple[type[Decoder], ...]:
    """Classes registered in this process alone, which have to be sent to any process that it starts."""
    elsewhere = {*BUILT_IN, *_installed()}
    return tuple(kind for kind in DECODERS.values() if kind not in elsewhere)


def decoder_names() -> list[str]:
    """Names of all decoders there are."""
    return list(decoder_classes())


def options_of(name: str) -> dict[str, Any]:
    """A decoder's settings and their defaults, by name.

    Raises
    ------
    NeurofuseError
        If there is no such decoder.
    """
    kinds = decoder_classes()
    if name not in kinds:
        raise NeurofuseError(f"there is no decoder '{name}'; choose one of {', '.join(kinds)}.")
    return kinds[name].options()


def make_decoder(name: str, **options: Any) -> Decoder:
    """Build a decoder by name.

    Raises
    ------
    NeurofuseError
        If there is no such decoder or option, or a value makes no sense.
    """
    check_options(name, options)
    return DECODERS[name](**options)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a decoder does not have, or whose values are unlike their defaults.

    Raises
    ------
    NeurofuseError
        If there is no such decoder or option, or a value makes no sense.
    """
    known = options_of(name)
    for option, value in options.items():
        if option not in known:
            raise NeurofuseError(
                f"decoder '{name}' has no option '{option}'; it has {', '.join(sorted(known))}."
            )
        if problem := _misfit(option, value, known[option]):
            raise NeurofuseError(f"decoder '{name}': {option} must be {problem}, got {value!r}.")


def _misfit(option: str, value: Any, default: Any) -> str:
    """What a value should be, judged by the default of its option; empty if it is that."""
    if value is None or default is Parameter.empty or value == default:
        return ""
    if isinstance(default, bool):
        fits, words = isinstance(value, bool), "True or False"
    elif isinstance(default, str):
        fits, words = isinstance(value, str), "a word"
    elif isinstance(default, int) and option == "seed":
        fits, words = _is_number(value, whole=True), "a whole number of zero or more"
    elif isinstance(default, int):
        fits, words = _is_number(value, whole=True) and value > 0, "a positive whole number"
    elif isinstance(default, (tuple, list)):
        many = isinstance(value, (tuple, list)) and len(value) > 0
        fits, words = many and all(map(_is_number, value)), "several numbers of zero or more, such as (1, 4)"
    else:
        fits, words = _is_number(value), "a number of zero or more"
    return "" if fits else words


def _is_number(value: Any, *, whole: bool = False) -> bool:
    """Whether a value is a finite number of zero or more."""
    kind = Integral if whole else Real
    return isinstance(value, kind) and not isinstance(value, bool) and 0 <= float(value) < inf


def load_decoder(folder: str | Path) -> Decoder:
    """Read a decoder written by `Decoder.save_pretrained`, of whatever class it is.

    Raises
    ------
    NeurofuseError
        If the folder does not hold a checkpoint of this version, or holds a decoder that is not registered.
    """
    config, state = read_checkpoint(folder)
    name = config["decoder"]
    if name not in decoder_classes():
        raise NeurofuseError(
            f"'{folder}' holds a decoder '{name}', which is not registered here; import the package that defines it, "
            "or register its class with `register_decoder`."
        )
    # JSON has lists where Python had tuples.
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in config["parameters"].items()}
    decoder = make_decoder(name, **settings)
    decoder.restore_checkpoint(config, state)
    return decoder


# Only this module imports every decoder, and `base` imports none.
Decoder.from_pretrained = staticmethod(load_decoder)


@cache
def _installed() -> tuple[type[Decoder], ...]:
    """Classes that installed packages list, loaded once."""
    return tuple(from_packages("neurofuse.decoders", "decoder", register_decoder))


def _check_class(cls: Any) -> None:
    """Refuse classes that could not be built by name, cloned or read from disk."""
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
