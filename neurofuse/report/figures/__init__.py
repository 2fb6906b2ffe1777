"""In: a `Recording`, or tables. Out: matplotlib axes.

Every plot_ function draws on the `ax` it is given, or on a new figure, and returns the axes; the figure is
`ax.figure`. A new figure belongs to pyplot only inside a Jupyter kernel, where that is what shows it;
anywhere else nothing global is touched and no display is needed.

Colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish, and cividis for maps.
"""

from neurofuse.report.figures.plot_attention import (
    plot_attention_quality,
    plot_calibration,
    plot_contribution,
    plot_window_attention,
)
from neurofuse.report.figures.plot_clock import plot_clock
from neurofuse.report.figures.plot_decode import (
    plot_attention,
    plot_decoded,
    plot_lag,
    plot_recording,
    plot_scores,
    plot_training,
    plot_trajectory,
)
from neurofuse.report.figures.plot_study import plot_lag_maps, plot_study, plot_study_attention
from neurofuse.report.figures.plot_tuning import plot_tuning

__all__ = [
    "plot_attention",
    "plot_calibration",
    "plot_clock",
    "plot_contribution",
    "plot_decoded",
    "plot_lag",
    "plot_lag_maps",
    "plot_recording",
    "plot_scores",
    "plot_attention_quality",
    "plot_study",
    "plot_study_attention",
    "plot_training",
    "plot_trajectory",
    "plot_tuning",
    "plot_window_attention",
]
