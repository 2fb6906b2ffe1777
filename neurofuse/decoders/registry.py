"""In: a name. Out: the decoder that goes by it."""

from __future__ import annotations

from typing import Any

from neurofuse.decoders.align_first import AlignEarlyDecoder, AlignRidgeDecoder
from neurofuse.decoders.autoregressive import AutoregressiveDecoder
from neurofuse.decoders.base import Decoder
from neurofuse.decoders.classical import KalmanDecoder, WienerCascadeDecoder
from neurofuse.decoders.early import EarlyAttentionDecoder, EarlyDecoder, EarlyMLPDecoder, GRUDecoder
from neurofuse.decoders.late import LateDecoder, LateVarianceDecoder, LFPDecoder, SpikesDecoder
from neurofuse.decoders.perceiver import PerceiverDecoder
from neurofuse.decoders.ridge import RidgeDecoder
from neurofuse.decoders.tracked import (
    BidirectionalSoftmaxDecoder,
    ConstantDecoder,
    OracleDecoder,
    SoftmaxDecoder,
    TrackedDecoder,
)
from neurofuse.recording import NeurofuseError

DECODERS: dict[str, type[Decoder]] = {
    d.name: d
    for d in (
        TrackedDecoder,
        ConstantDecoder,
        SoftmaxDecoder,
        BidirectionalSoftmaxDecoder,
        OracleDecoder,
        AutoregressiveDecoder,
        PerceiverDecoder,
        EarlyDecoder,
        EarlyMLPDecoder,
        EarlyAttentionDecoder,
        GRUDecoder,
        LateDecoder,
        LateVarianceDecoder,
        SpikesDecoder,
        LFPDecoder,
        RidgeDecoder,
        WienerCascadeDecoder,
        KalmanDecoder,
        AlignRidgeDecoder,
        AlignEarlyDecoder,
    )
}


def make_decoder(name: str, **parameters: Any) -> Decoder:
    """Build a decoder by name; parameters it does not know are an error.

    Raises
    ------
    NeurofuseError
        If there is no such decoder, or it has no such parameter.
    """
    if name not in DECODERS:
        raise NeurofuseError(f"there is no decoder '{name}'; choose one of {', '.join(DECODERS)}.")
    kind = DECODERS[name]
    known = set(kind._get_param_names())
    unknown = sorted(set(parameters) - known)
    if unknown:
        raise NeurofuseError(
            f"decoder '{name}' has no parameter '{unknown[0]}'; it has {', '.join(sorted(known))}."
        )
    return kind(**parameters)


def parameters_of(name: str) -> set[str]:
    """The hyperparameters a decoder has."""
    make_decoder(name)
    return set(DECODERS[name]._get_param_names())
