"""In: tokens of all clocks. Out: movement by two classical decoders: a Wiener cascade and a Kalman filter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurofuse.decoders.base import Prediction
from neurofuse.decoders.ridge import CHUNK, RidgeDecoder, lagged, some_windows
from neurofuse.decoders.scale import standard
from neurofuse.windows import Batch, Windows

# Degrees of the polynomial tried on the validation stretch; 1 leaves the Wiener filter as it is, but for its gain.
DEGREES = (1, 2, 3, 4, 5)
# Factors on the observation noise, tried on the validation stretch: the filter assumes noise independent between
# tokens, and it is correlated, so that without a factor observations weigh too much.
NOISE_FACTORS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
# Principal components per clock, tried on the validation stretch.
COMPONENTS = (20, 40, 80)
# Keeps covariances invertible: movement follows from its past and its derivative without noise of its own.
JITTER = 1e-6


class WienerCascadeDecoder(RidgeDecoder):
    """A Wiener filter (the ridge on lagged tokens), then a static polynomial of each axis.

    The polynomial is fitted by least squares to the filter's output on the training windows; the degree of least
    error on the validation stretch is kept for each axis. For parameters see `RidgeDecoder`. Source:
    Pohlmeyer et al. (2007), J. Neural Eng. 4:162.
    """

    name = "wiener-cascade"

    @property
    def n_parameters_(self) -> int:
        """Learned numbers."""
        return super().n_parameters_ + sum(d + 1 for d in self.degree_)

    def _solve(
        self, design: np.ndarray, target: np.ndarray, check_design: np.ndarray, check_target: np.ndarray
    ) -> None:
        offset = target.mean(axis=0)
        super()._solve(design, target, check_design, check_target)
        linear = design @ self.ridge_.weights.T + offset  # the fit has centred the columns
        check_linear = super()._apply(check_design)
        # A polynomial diverges outside the range that it was fitted on.
        self.bounds_ = np.stack([linear.min(axis=0), linear.max(axis=0)]).astype(np.float32)
        self.coefficients_ = np.zeros((target.shape[1], max(DEGREES) + 1), dtype=np.float32)
        self.degree_: list[int] = []
        for axis in range(target.shape[1]):
            tried = [np.polynomial.polynomial.polyfit(linear[:, axis], target[:, axis], d) for d in DEGREES]
            inside = np.clip(check_linear[:, axis], *self.bounds_[:, axis])
            error = [
                np.mean((np.polynomial.polynomial.polyval(inside, c) - check_target[:, axis]) ** 2)
                for c in tried
            ]
            best = int(np.argmin(error))
            self.degree_.append(DEGREES[best])
            self.coefficients_[axis, : DEGREES[best] + 1] = tried[best]

    def _apply(self, design: np.ndarray) -> np.ndarray:
        linear = np.clip(super()._apply(design), *self.bounds_)
        return np.stack(
            [
                np.polynomial.polynomial.polyval(linear[..., k], c)
                for k, c in enumerate(self.coefficients_.astype(np.float64))
            ],
            axis=-1,
        )

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | {
            "bounds": self.bounds_,
            "coefficients": self.coefficients_,
            "degree": np.array(self.degree_, dtype=np.int64),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        super().restore(state)
        self.bounds_, self.coefficients_ = state["bounds"], state["coefficients"]
        self.degree_ = state["degree"].tolist()


@dataclass(frozen=True, eq=False)
class StateSpace:
    """A linear-Gaussian state space: x' = A x + w, y = C x + v, and x ~ N(0, P) before any observation.

    Parameters
    ----------
    move : ndarray, shape (n_states, n_states)
        A.
    move_noise : ndarray, shape (n_states, n_states)
        Covariance of w.
    observe : ndarray, shape (n_observations, n_states)
        C.
    observe_noise : ndarray, shape (n_observations, n_observations)
        Covariance of v.
    start : ndarray, shape (n_states, n_states)
        P.
    """

    move: np.ndarray
    move_noise: np.ndarray
    observe: np.ndarray
    observe_noise: np.ndarray
    start: np.ndarray

    def states(
        self, y_BTO: np.ndarray, observed_BTO: np.ndarray, *, smooth: bool, noise: float = 1.0
    ) -> np.ndarray:
        """Mean of the state at every moment of many sequences: Kalman filter, or Rauch-Tung-Striebel smoother.

        Parameters
        ----------
        y_BTO : ndarray, shape (n_sequences, n_steps, n_observations)
        observed_BTO : bool ndarray of the same shape
            Observations that were made; the others are ignored.
        smooth : bool
            Use the whole sequence rather than its past.
        noise : float
            Factor on the covariance of the observations.

        Returns
        -------
        float64 ndarray, shape (n_sequences, n_steps, n_states)
        """
        n_steps, n_states = y_BTO.shape[1], len(self.move)
        # Observations are projected onto the state's dimensions once, before any recursion.
        flat = observed_BTO.reshape(-1, observed_BTO.shape[-1])
        patterns, which = np.unique(flat, axis=0, return_inverse=True)
        which = which.reshape(observed_BTO.shape[:2])
        weight = np.zeros((len(patterns), n_states, n_states))
        projected = np.zeros((*which.shape, n_states))
        for k, on in enumerate(patterns):
            if not on.any():
                continue
            gain = np.linalg.solve(noise * self.observe_noise[np.ix_(on, on)], self.observe[on])
            weight[k] = self.observe[on].T @ gain
            here = which == k
            projected[here] = y_BTO[here][:, on] @ gain
        mean = np.zeros((len(which), n_states))
        cov = np.broadcast_to(self.start, (len(which), n_states, n_states))
        ahead, ahead_cov, now, now_cov = [], [], [], []
        for t in range(n_steps):
            if t:
                mean = mean @ self.move.T
                cov = self.move @ cov @ self.move.T + self.move_noise
            ahead.append(mean)
            ahead_cov.append(cov)
            information = weight[which[:, t]]
            cov = np.linalg.inv(np.linalg.inv(cov) + information)
            innovation = projected[:, t] - np.einsum("bij,bj->bi", information, mean)
            mean = mean + np.einsum("bij,bj->bi", cov, innovation)
            now.append(mean)
            now_cov.append(cov)
        if smooth:
            for t in reversed(range(n_steps - 1)):
                back = now_cov[t] @ self.move.T @ np.linalg.inv(ahead_cov[t + 1])
                now[t] = now[t] + np.einsum("bij,bj->bi", back, now[t + 1] - ahead[t + 1])
        return np.stack(now, axis=1)


def fit_state_space(state_NTS: np.ndarray, y_NTO: np.ndarray) -> StateSpace:
    """Least squares over sequences in which states are known; steps at which they are NaN are left out."""
    known = np.isfinite(state_NTS).all(axis=-1)
    both = known[:, 1:] & known[:, :-1]
    before, after = state_NTS[:, :-1][both], state_NTS[:, 1:][both]
    x, y = state_NTS[known], y_NTO[known].astype(np.float64)
    start = x.T @ x / len(x)
    move = np.linalg.lstsq(before, after, rcond=None)[0].T
    left = after - before @ move.T
    observe = np.linalg.lstsq(x, y, rcond=None)[0].T
    residual = y - x @ observe.T
    small = JITTER * np.trace(start) / len(start) * np.eye(len(start))
    noise = residual.T @ residual / len(y)
    return StateSpace(
        move,
        left.T @ left / len(left) + small,
        observe,
        noise + JITTER * np.trace(noise) / len(noise) * np.eye(len(noise)),
        start + small,
    )


class KalmanDecoder(RidgeDecoder):
    """Linear-Gaussian state space: movement and its derivatives are the state, tokens of all clocks observe it.

    Fitted by least squares. Observations are the `n_components` strongest principal components of each clock's tokens
    at the lags that ridge takes. A filter when causal, a Rauch-Tung-Striebel smoother otherwise. Source:
    Wu et al. (2006), Neural Comput. 18:80.

    Parameters
    ----------
    n_derivatives : int
        Derivatives of the movement in the state; 1 adds velocity to position, or acceleration to velocity.
    n_components : int, optional
        Observations per clock; by default as many as give the least error on the validation stretch.
    **more
        See `RidgeDecoder`; `context_s` is the reach of the anchor's lags.
    """

    name = "kalman"

    def __init__(
        self,
        *,
        n_derivatives: int = 1,
        n_components: int | None = None,
        context_s: float = 0.2,
        n_draws: int = 2,
        causal: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(context_s=context_s, n_draws=n_draws, causal=causal, seed=seed)
        self.n_derivatives = n_derivatives
        self.n_components = n_components

    @property
    def n_parameters_(self) -> int:
        """Learned numbers."""
        s = self.space_
        return sum(a.size for a in (s.move, s.move_noise, s.observe, s.observe_noise, *self.bases_))

    def fit(
        self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None
    ) -> KalmanDecoder:
        """Principal components, then the state space; their number and its noise chosen on the validation stretch."""
        X, target, check, check_target = self.training_parts(X, y, validation)
        self.learn_scales(X, target)
        self.lags_ = self._choose_lags(X)
        rows = some_windows(X, self.n_draws)
        batch = X.batch(rows, rng=np.random.default_rng([self.seed, 2]))
        columns, _ = self._columns(batch, spare=0)
        flat = [c.reshape(-1, c.shape[-1]) for c in columns]
        self.middles_ = [c.mean(axis=0) for c in flat]
        counts = COMPONENTS if self.n_components is None else (self.n_components,)
        widest = [_principal(c - m, max(counts)) for c, m in zip(flat, self.middles_, strict=True)]
        states = self._states(self.movement_scale_.to_standard(target[rows]))
        scaled = self.movement_scale_.to_standard(check_target)
        known = np.isfinite(scaled).all(axis=-1)
        check_batch = check.batch(slice(None))
        least = np.inf
        for n in counts:
            self.bases_ = [basis[:, :n] for basis in widest]
            self.space_ = fit_state_space(states, self._observe(batch, spare=0)[0])
            for factor in NOISE_FACTORS:
                error = float(np.mean((self._run(check_batch, factor) - scaled)[known] ** 2))
                if error < least:
                    least, kept = error, (self.bases_, self.space_, factor)
        self.bases_, self.space_, self.noise_ = kept
        return self

    def decode(self, X: Windows) -> Prediction:
        """Movement of some windows."""
        self.check_windows(X)
        out = [self._run(X.batch(slice(k, k + CHUNK)), self.noise_) for k in range(0, len(X), CHUNK)]
        return Prediction(self.movement_scale_.from_standard(np.concatenate(out)).astype(np.float32))

    def _states(self, movement_NTA: np.ndarray) -> np.ndarray:
        """Movement and its backward differences, NaN where the window does not reach back far enough."""
        parts = [movement_NTA.astype(np.float64)]
        for _ in range(self.n_derivatives):
            last = parts[-1]
            first = np.full_like(last[:, :1], np.nan)
            parts.append(np.concatenate([first, np.diff(last, axis=1)], axis=1))
        return np.concatenate(parts, axis=-1)

    def _columns(self, batch: Batch, spare: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Lagged tokens of each clock, and presence (B, T, C), at the window's moments and `spare` more around."""
        steps = np.arange(batch.reach - spare, batch.reach + spare + batch.movement.shape[1])
        values = standard(batch, self.input_scales_)
        columns = [lagged([x], [lags], [steps]) for x, lags in zip(values, self.lags_, strict=True)]
        return columns, np.stack([p[:, steps] for p in batch.present], axis=-1)

    def _observe(self, batch: Batch, spare: int) -> tuple[np.ndarray, np.ndarray]:
        columns, present = self._columns(batch, spare)
        y = [(c - m) @ b for c, m, b in zip(columns, self.middles_, self.bases_, strict=True)]
        return np.concatenate(y, axis=-1), np.repeat(present, [b.shape[1] for b in self.bases_], axis=-1)

    def _run(self, batch: Batch, noise: float) -> np.ndarray:
        # Sequences begin before the window, so that the state has settled where the window begins.
        spare = batch.reach - max(int(np.abs(lags).max()) for lags in self.lags_)
        state = self.space_.states(*self._observe(batch, spare), smooth=not self.causal, noise=noise)
        return state[:, spare : state.shape[1] - spare, : self.n_axes_]

    def state(self) -> dict[str, np.ndarray]:
        out = {f"space.{name}": value for name, value in vars(self.space_).items()}
        for k, (lags, middle, basis) in enumerate(zip(self.lags_, self.middles_, self.bases_, strict=True)):
            out |= {f"lags{k}": lags, f"middle{k}": middle, f"basis{k}": basis}
        return out | {"noise": np.array([self.noise_])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.space_ = StateSpace(
            **{n.removeprefix("space."): v for n, v in state.items() if n.startswith("space.")}
        )
        clocks = range(len(self.clocks_))
        self.lags_ = [state[f"lags{k}"] for k in clocks]
        self.middles_ = [state[f"middle{k}"] for k in clocks]
        self.bases_ = [state[f"basis{k}"] for k in clocks]
        self.noise_ = float(state["noise"][0])


def _principal(centred: np.ndarray, n: int) -> np.ndarray:
    """Strongest principal components of some rows, as columns that give unit variance."""
    values, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred / len(centred))
    kept = np.argsort(values)[::-1][:n]
    kept = kept[values[kept] > 1e-9 * values.max()]
    return (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)
