"""In: nothing. Out: the decoder classes of this package, in the order in which they are listed."""

from __future__ import annotations

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

BUILT_IN: tuple[type[Decoder], ...] = (
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
