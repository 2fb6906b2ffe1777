"""In: queries, keys and values of two streams. Out: scores of a band of lags, and values read at those lags.

Tensors end in their dimensions, here and in every module of this folder:

    B window   T token of a window   W token of a window and its context   H head   L lag   D feature
    U input feature   A movement axis   J block of tokens that share one lag   E token of a block   C other clock

Only a band of lags is scored, so time and memory grow with T * L and never with T * T.
"""

from __future__ import annotations

from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor

from neurofuse.recording import FloatArray

Values = TypeVar("Values", Tensor, FloatArray)


def cubic_taps(t: Values) -> tuple[Values, Values, Values, Values]:
    """Weights of four neighbours on an even grid, for cubic interpolation between the middle two.

    Catmull and Rom 1974; exact for straight lines, and for every value on the grid.

    Parameters
    ----------
    t : Tensor or ndarray
        Distance from the second neighbour towards the third, between 0 and 1 grid steps.

    Returns
    -------
    tuple of 4
        Of the shape of `t`; they sum to one.
    """
    return (
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )


def band_scores(query_BHTD: Tensor, key_BHWD: Tensor) -> Tensor:
    """Dot products q_t . k_(t+l) for the lags that the keys reach: W = T + 2M gives L = 2M + 1 lags.

    Returns
    -------
    Tensor, shape (B, H, T, L)
        Lag index l stands for a lag of l - M tokens.
    """
    n_tokens, n_keys = query_BHTD.shape[-2], key_BHWD.shape[-2]
    n_lags = n_keys - n_tokens + 1
    if n_tokens <= 2 * n_lags:
        return _unskew(query_BHTD @ key_BHWD.transpose(-1, -2), n_lags)
    # In blocks about as long as the band: the dense corner is never larger than twice what is kept.
    n_block = n_lags
    n_pad = -n_tokens % n_block
    query_BHJTD = F.pad(query_BHTD, (0, 0, 0, n_pad)).unflatten(-2, (-1, n_block))
    padded = F.pad(key_BHWD, (0, 0, 0, n_pad))
    key_BHJDW = padded.unfold(-2, n_block + n_lags - 1, n_block)
    return _unskew(query_BHJTD @ key_BHJDW, n_lags).flatten(-3, -2)[..., :n_tokens, :]


def band_read(weight_BHTL: Tensor, value_BHWD: Tensor) -> Tensor:
    """Values read at weighted lags: r_t = sum_l weight[t, l] v_(t+l), shape (B, H, T, D)."""
    n_tokens, n_lags = weight_BHTL.shape[-2:]
    if n_tokens <= 2 * n_lags:
        return _skew(weight_BHTL) @ value_BHWD
    n_block = n_lags
    n_pad = -n_tokens % n_block
    weight_BHJTL = F.pad(weight_BHTL, (0, 0, 0, n_pad)).unflatten(-2, (-1, n_block))
    padded = F.pad(value_BHWD, (0, 0, 0, n_pad))
    value_BHJWD = padded.unfold(-2, n_block + n_lags - 1, n_block).transpose(-1, -2)
    return (_skew(weight_BHJTL) @ value_BHJWD).flatten(-3, -2)[..., :n_tokens, :]


def band_read_reverse(weight_BTL: Tensor, query_in_BTD: Tensor) -> Tensor:
    """The transpose of `band_read`: r_w = sum_l weight[w - l, l] x_(w-l), shape (B, W, D).

    With weights that sum to one over lags, each token of the other clock gets the expected sum of the anchor's tokens
    that match it.
    """
    n_lags = weight_BTL.shape[-1]
    # From the other clock to the anchor the lags have the opposite sign: reversed in time, it is a band again.
    padded = F.pad(weight_BTL, (0, 0, n_lags - 1, n_lags - 1))
    n_keys = weight_BTL.shape[1] + n_lags - 1
    reversed_BWL = _unskew_rows(padded, n_keys)
    return band_read(reversed_BWL[:, None], F.pad(query_in_BTD, (0, 0, n_lags - 1, n_lags - 1))[:, None])[
        :, 0
    ]


def _unskew_rows(padded_BTL: Tensor, n_keys: int) -> Tensor:
    """Entry (w, i) is the weight from token w + i - (L - 1) to w, of a band padded by L - 1 tokens on both sides."""
    n_lags = padded_BTL.shape[-1]
    step_t, step_l = padded_BTL.stride(1), padded_BTL.stride(2)
    # Token w + i (padded) with lag index L - 1 - i.
    return padded_BTL.as_strided(
        (padded_BTL.shape[0], n_keys, n_lags),
        (padded_BTL.stride(0), step_t, step_t - step_l),
        padded_BTL.storage_offset() + (n_lags - 1) * step_l,
    )


def _unskew(dense: Tensor, n_lags: int) -> Tensor:
    """Diagonals of (T, W) as rows of (T, L): read with a row length of W + 1, entry (t, t + l) lands at (t, l)."""
    n_tokens, n_keys = dense.shape[-2:]
    flat = F.pad(dense.flatten(-2), (0, n_tokens))
    return flat.unflatten(-1, (n_tokens, n_keys + 1))[..., :n_lags]


def _skew(band: Tensor) -> Tensor:
    """The inverse of `_unskew`: rows of (T, L) laid along the diagonals of (T, T + L - 1), zero elsewhere."""
    n_tokens, n_lags = band.shape[-2:]
    n_keys = n_tokens + n_lags - 1
    flat = F.pad(band, (0, n_keys + 1 - n_lags)).flatten(-2)
    return flat[..., : n_tokens * n_keys].unflatten(-1, (n_tokens, n_keys))
