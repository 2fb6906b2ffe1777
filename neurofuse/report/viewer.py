"""In: a recording, and its alignment if there is one. Out: a window with a slider that applies a lag.

The second clock is drawn where a lag puts it, together with the correlation of the activity on the two clocks and, if
an alignment is given, its posterior. `draw` and `correlation` need no notebook; `explore` adds the widgets.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.ndimage import gaussian_filter1d

from neurofuse.errors import NeurofuseError
from neurofuse.recording import FloatArray, Recording, Signal, Spikes, Stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Grid and smoothing on which the activity of two clocks is compared.
GRID_S, RATE_SMOOTH_S = 0.01, 0.05
VIEWER_DPI = 80


@dataclass(frozen=True)
class View:
    """The part of a recording that is drawn, and the lag applied to it.

    Parameters
    ----------
    start_s, width_s : float
        The window, seconds on the reference clock.
    units, channels : pair of int
        First and last unit of every population, first and last channel of every other signal; both are shown.
    lag_s : float
        Events stamped t + lag on the second clock are drawn at t.
    """

    start_s: float
    width_s: float = 10.0
    units: tuple[int, int] = (0, 10**9)
    channels: tuple[int, int] = (0, 10**9)
    lag_s: float = 0.0


def second_clock(recording: Recording, clock: str | None = None) -> str | None:
    """The clock that a lag moves: the one named, else the first after the reference; None if there is no other."""
    others = [c for c in recording.clocks if c != recording.reference]
    if clock is not None and clock not in others:
        raise NeurofuseError(f"there is no clock '{clock}' besides the reference; there are {others}.")
    return clock or next(iter(others), None)


def shown(recording: Recording, view: View, *, clock: str | None = None) -> Recording:
    """The part of a recording inside a view, the second clock moved back by the lag."""
    moved = second_clock(recording, clock)
    margin_s = abs(view.lag_s) + 1.0
    part = recording.between(view.start_s, view.start_s + view.width_s, margin_s=margin_s)
    if moved is not None:
        part = part.retimed(moved, lambda t: t - view.lag_s, did=f"shown with a lag of {view.lag_s:g} s")
    return part.but(streams=tuple(_chosen(s, view) for s in part.streams))


def _chosen(stream: Stream, view: View) -> Stream:
    population = isinstance(stream, Spikes) or stream.kind == "counts"
    first, last = view.units if population else view.channels
    n = stream.n_units if isinstance(stream, Spikes) else stream.n_channels
    kept = list(range(min(first, n - 1), min(last, n - 1) + 1)) if n else []
    return stream.select(kept)


def correlation(
    recording: Recording, view: View, *, clock: str | None = None, max_lag_s: float = 0.5
) -> tuple[FloatArray, FloatArray]:
    """Correlation of the summed activity on the two clocks in the window, lag by lag.

    Activity is the smoothed rate of spikes and counts, the smoothed size of the LFP's changes, and the mean of power,
    each stream as z-scores, averaged over the streams of a clock. It serves for display and is no estimate of the lag.

    Returns
    -------
    lag_s, r : ndarray, shape (n_lags,)
        NaN where a clock holds nothing.
    """
    moved = second_clock(recording, clock)
    reach = round(max_lag_s / GRID_S)
    lag_s: FloatArray = np.arange(-reach, reach + 1) * np.float64(GRID_S)
    if moved is None:
        return lag_s, np.full(lag_s.size, np.nan)
    n = max(round(view.width_s / GRID_S), 2)
    time_s: FloatArray = view.start_s + np.float64(GRID_S) * np.arange(n)
    wide_s: FloatArray = view.start_s + np.float64(GRID_S) * np.arange(-reach, n + reach)
    wider = recording.between(view.start_s, view.start_s + view.width_s, margin_s=max_lag_s + 1.0)
    fixed = _activity([_chosen(s, view) for s in wider.on(recording.reference)], time_s)
    other = _activity([_chosen(s, view) for s in wider.on(moved)], wide_s)
    if not (fixed.std() > 0 and other.std() > 0):
        return lag_s, np.full(lag_s.size, np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(other, n)
    r = [float(np.corrcoef(fixed, w)[0, 1]) if w.std() else np.nan for w in windows]
    return lag_s, np.array(r)


def _activity(streams: list[Stream], time_s: FloatArray) -> FloatArray:
    """Mean z-score of the activity of some streams, on a grid."""
    edges = np.append(time_s, time_s[-1] + GRID_S)
    rows = []
    for stream in streams:
        if isinstance(stream, Spikes):
            row = np.histogram(stream.times_s, edges)[0].astype(np.float64)
        elif stream.time_s.size < 2:
            continue
        else:
            row = np.interp(time_s, stream.time_s, _size(stream))
        row = gaussian_filter1d(row, RATE_SMOOTH_S / GRID_S)
        if row.std() > 0:
            rows.append((row - row.mean()) / row.std())
    return np.mean(rows, axis=0) if rows else np.zeros(time_s.size)


def _size(signal: Signal) -> FloatArray:
    values = signal.data.values.astype(np.float64)
    if signal.kind == "counts":
        return values.sum(axis=1)
    values = np.abs(np.diff(values, axis=0, prepend=values[:1])) if signal.kind == "lfp" else values
    spread = np.where(values.std(axis=0) > 0, values.std(axis=0), 1.0)
    mean: FloatArray = ((values - values.mean(axis=0)) / spread).mean(axis=1)
    if signal.kind == "lfp":
        mean = gaussian_filter1d(mean, RATE_SMOOTH_S / signal.sample_s)
    return mean


def draw(
    recording: Recording,
    view: View,
    *,
    clock: str | None = None,
    posterior: xr.DataArray | None = None,
    max_lag_s: float = 0.5,
) -> Figure:
    """One figure: the streams of the window on the left, correlation and posterior over lags on the right.

    Parameters
    ----------
    recording : Recording
    view : View
    clock : str, optional
        The clock that the lag moves, by default the first after the reference.
    posterior : DataArray, dims (time, lag), optional
        Probability of each lag over the session.
    max_lag_s : float
        Largest lag shown, seconds.
    """
    from matplotlib.figure import Figure

    from neurofuse.report.figures import plot_recording
    from neurofuse.report.figures.panel import BLUE, TITLE, VERMILLION, tidy, usual_step

    part = shown(recording, view, clock=clock)
    n_panels = len(part.streams) + (part.movement is not None)
    figure = Figure(figsize=(11, max(1.6 * n_panels, 3.2)), dpi=VIEWER_DPI, layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(2.6, 1))
    left, right = parts
    plot_recording(
        part,
        start_s=view.start_s,
        stop_s=view.start_s + view.width_s,
        ax=left.subplots(n_panels, 1, sharex=True, squeeze=False)[:, 0],
    )
    left.axes[n_panels - 1].set_xlabel(f"time on clock '{recording.reference}', after the lag (s)")
    panels = right.subplots(1 + (posterior is not None), 1, sharex=True, squeeze=False)[:, 0]
    lag_s, r = correlation(recording, view, clock=clock, max_lag_s=max_lag_s)
    panels[0].plot(lag_s, r, color=BLUE, lw=1.3)
    here = float(np.interp(view.lag_s, lag_s, r))
    panels[0].set_title(f"activity: r = {here:.2f} at this lag", **TITLE)
    panels[0].set_ylabel("correlation r")
    if posterior is not None:
        inside = posterior.sel(time=slice(view.start_s, view.start_s + view.width_s))
        inside = inside if inside.sizes["time"] else posterior.sel(time=[view.start_s], method="nearest")
        panels[1].plot(inside["lag"].values, inside.mean("time").values, color=BLUE, lw=1.3)
        panels[1].set_title("posterior in the window", **TITLE)
        step_ms = 1000 * usual_step(inside["lag"].values)
        panels[1].set_ylabel(f"probability per {step_ms:.3g} ms")
    for panel in panels:
        panel.axvline(view.lag_s, color=VERMILLION, lw=1.5)
        panel.set_xlim(-max_lag_s, max_lag_s)
        tidy(panel)
    panels[-1].set_xlabel("lag of the second clock (s)")
    return figure


class Explorer:
    """The widgets around `draw`; `box` holds them, and a notebook shows them when this is the last of a cell.

    Attributes
    ----------
    start, width, units, channels, lag : widgets
        Each redraws the picture when it is moved.
    figure : matplotlib.figure.Figure
        As drawn last.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        alignment: Any = None,
        clock: str | None = None,
        max_lag_s: float | None = None,
    ) -> None:
        widgets = _widgets()
        self.recording = recording
        self.clock = second_clock(recording, clock)
        self.posterior = _posterior(alignment, self.clock)
        known_s = 0.0 if self.posterior is None else float(np.abs(self.posterior["lag"].values).max())
        self.max_lag_s = max_lag_s or max(known_s, 0.5)
        start_s, stop_s = recording.span_s
        populations = [s for s in recording.streams if isinstance(s, Spikes) or s.kind == "counts"]
        sizes = [s.n_units if isinstance(s, Spikes) else s.n_channels for s in populations]
        n_units = max(sizes, default=1)
        n_channels = max((s.n_channels for s in recording.signals if s.kind != "counts"), default=1)
        width_s = min(10.0, stop_s - start_s)
        late = {"continuous_update": False, "layout": widgets.Layout(width="95%")}
        self.start = widgets.FloatSlider(
            start_s,
            min=start_s,
            max=max(stop_s - width_s, start_s + 1e-3),
            step=0.5,
            description="window (s)",
            **late,
        )
        self.width = widgets.FloatSlider(
            width_s,
            min=min(1.0, width_s),
            max=max(min(60.0, stop_s - start_s), 1.0),
            description="width (s)",
            **late,
        )
        self.units = widgets.IntRangeSlider(
            value=(0, n_units - 1), min=0, max=max(n_units - 1, 1), description="units", **late
        )
        self.channels = widgets.IntRangeSlider(
            value=(0, min(n_channels, 8) - 1),
            min=0,
            max=max(n_channels - 1, 1),
            description="channels",
            **late,
        )
        self.lag = widgets.FloatSlider(
            0.0,
            min=-self.max_lag_s,
            max=self.max_lag_s,
            step=GRID_S,
            readout_format=".3f",
            description="lag (s)",
            disabled=self.clock is None,
            **late,
        )
        self.estimate = widgets.Button(description="go to the estimated lag", disabled=self.posterior is None)
        self.estimate.on_click(lambda _: self.go_to_estimate())
        self.picture = widgets.Image(format="png", layout=widgets.Layout(width="99%", object_fit="contain"))
        controls = (self.start, self.width, self.units, self.channels, self.lag)
        for control in controls:
            control.observe(lambda _: self.redraw(), names="value")
        self.box = widgets.VBox([*controls, self.estimate, self.picture])
        self.redraw()

    @property
    def view(self) -> View:
        """The settings of the widgets."""
        return View(self.start.value, self.width.value, self.units.value, self.channels.value, self.lag.value)

    def redraw(self) -> None:
        """Draw with the settings of the widgets."""
        self.figure = draw(
            self.recording, self.view, clock=self.clock, posterior=self.posterior, max_lag_s=self.max_lag_s
        )
        out = io.BytesIO()
        self.figure.savefig(out, format="png")
        self.picture.value = out.getvalue()

    def go_to_estimate(self) -> None:
        """Move the lag slider to the most probable lag of the window."""
        if self.posterior is None:
            return
        view = self.view
        middle = self.posterior.sel(time=view.start_s + view.width_s / 2, method="nearest")
        self.lag.value = float(middle["lag"].values[np.argmax(middle.values)])

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.box._repr_mimebundle_(**options)


def explore(
    recording: Recording, *, alignment: Any = None, clock: str | None = None, max_lag_s: float | None = None
) -> Explorer:
    """Explore a recording in a notebook: window, units, channels, and a lag that moves the second clock.

    Parameters
    ----------
    recording : Recording
    alignment : Alignment, DecodeResult or Dataset, optional
        The posterior over lags to be drawn with it.
    clock : str, optional
        The clock that the lag moves, by default the first after the reference.
    max_lag_s : float, optional
        Largest lag of the slider; by default the largest of the alignment, and no less than 0.5 s.

    Returns
    -------
    Explorer

    Raises
    ------
    NeurofuseError
        If ipywidgets is missing, there is no such clock, or the alignment is none.
    """
    return Explorer(recording, alignment=alignment, clock=clock, max_lag_s=max_lag_s)


def _widgets() -> Any:
    try:
        import ipywidgets
    except ImportError:
        raise NeurofuseError(
            "explore needs ipywidgets; install it with: pip install 'neurofuse[notebooks]'."
        ) from None
    return ipywidgets


def _posterior(alignment: Any, clock: str | None) -> xr.DataArray | None:
    """The posterior (time, lag) of one clock out of an alignment, a decode, or their tables."""
    table = getattr(alignment, "lag", None)
    table = table if isinstance(table, xr.Dataset) else getattr(alignment, "alignment", alignment)
    if table is None or clock is None:
        return None
    if not isinstance(table, xr.Dataset) or "posterior" not in table:
        raise NeurofuseError(
            f"an alignment is what `align` or `decode_recording` returned, or a table with 'posterior'; got "
            f"{type(alignment).__name__}."
        )
    if clock not in table["clock"].values:
        raise NeurofuseError(
            f"the alignment has no clock '{clock}'; it has {[str(c) for c in table['clock'].values]}."
        )
    return table["posterior"].sel(clock=clock).transpose("time", "lag")
