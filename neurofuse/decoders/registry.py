"""In: a name. Out: the decoder of that name: of this package, of an installed one, or of `register_decoder`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from neurofuse.decoders.base import Decoder
from neurofuse.decoders.built_in import BUILT_IN
from neurofuse.decoders.checkpoint import read_checkpoint
from neurofuse.decoders.options import check_class, check_value
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
    check_class(cls)
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
    """Classes registered in this process only, which have to be sent to any process that it starts."""
    elsewhere = {*BUILT_IN, *_installed()}
    return tuple(kind for kind in DECODERS.values() if kind not in elsewhere)


def decoder_names() -> list[str]:
    """Names of all decoders there are."""
    return list(decoder_classes())


def options_of(name: str) -> dict[str, Any]:
    """A decoder's settings and their defaults, by name; a name that is none is refused with those there are."""
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
    """Refuse options that a decoder does not have, and values unlike the option's default."""
    known = options_of(name)
    for option, value in options.items():
        if option not in known:
            raise NeurofuseError(
                f"decoder '{name}' has no option '{option}'; it has {', '.join(sorted(known))}."
            )
        check_value(DECODERS[name], option, value)


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
