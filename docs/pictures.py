"""The pictures of README and documentation, from results of the command line::

    neurofuse decode demo --out out/demo
    neurofuse align demo:skew --out out/clock
    neurofuse study demo --jitter noise --decoders tracked,softmax --protocol test-only \\
        --seeds 2 --steps 150 --token 0.05 --out out/study
    python docs/pictures.py out
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import neurofuse

IMAGES = Path(__file__).parent / "images"


def opened(path: Path) -> xr.Dataset:
    """A table that the command line wrote."""
    return xr.load_dataset(path, engine="h5netcdf")


def decode_picture(folder: Path) -> Figure:
    """Ten seconds of movement, and the lag posterior over the whole test stretch."""
    prediction, alignment = opened(folder / "prediction.nc"), opened(folder / "alignment.nc")
    n_axes = prediction.sizes["axis"]
    figure = Figure(figsize=(9, 2 + 1.7 * n_axes), layout="constrained")
    panels = figure.subplots(n_axes + 1, 1, gridspec_kw={"height_ratios": [1] * n_axes + [1.4]})
    start_s = float(prediction["time"][0])
    neurofuse.plot_decoded(prediction, stop_s=start_s + 10, ax=panels[:n_axes])
    neurofuse.plot_attention(alignment, ax=panels[-1])
    return figure


def main(out: Path) -> None:
    """Write every picture whose results are there."""
    if (out / "demo").exists():
        decode_picture(out / "demo").savefig(IMAGES / "decode.png", dpi=110)
        panel = neurofuse.plot_attention(opened(out / "demo" / "alignment.nc"))
        panel.figure.savefig(IMAGES / "attention.png", dpi=110)
    if (out / "study").exists():
        panels = neurofuse.open_study(out / "study").study.plot()
        np.atleast_1d(panels).ravel()[0].figure.savefig(IMAGES / "study.png", dpi=110)
    if (out / "clock" / "clock.png").exists():
        shutil.copy(out / "clock" / "clock.png", IMAGES / "clock.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
