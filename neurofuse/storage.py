"""In: a `Recording`. Out: one netCDF file (`.nc`) that holds all of it, and back again, bit for bit."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from neurofuse.errors import NeurofuseError
from neurofuse.recording import Movement, Recording, Signal, Spikes, Stream

# Value of the attribute `layout` by which such a file is recognised.
RECORDING_LAYOUT = "neurofuse-recording-1"


def save_recording(recording: Recording, path: str | Path) -> Path:
    """Write a recording to one `.nc` file; the file appears whole or not at all.

    Raises
    ------
    NeurofuseError
        If the folder cannot be written.
    """
    path = Path(path)
    head = xr.Dataset(
        {f"trials_{_key(c)}": ("trial", _plain(recording.trials[c])) for c in recording.trials.columns},
        attrs={
            "layout": RECORDING_LAYOUT,
            "name": recording.name,
            "reference": recording.reference,
            "provenance": json.dumps(recording.provenance),
            "streams": json.dumps([s.name for s in recording.streams]),
        },
    )
    parts = {f"stream{k}": _stream_dataset(s) for k, s in enumerate(recording.streams)}
    if recording.movement is not None:
        m = recording.movement
        attrs = {"name": m.name, "sample_s": m.sample_s, "units": m.units}
        parts["movement"] = xr.Dataset({"data": m.data.assign_attrs(units=m.units)}, attrs=attrs)
    with whole_file(path) as partial:
        head.to_netcdf(partial, mode="w", engine="h5netcdf")
        for group, dataset in parts.items():
            dataset.to_netcdf(partial, mode="a", group=group, engine="h5netcdf")
    return path


def open_recording(path: str | Path) -> Recording:
    """Read a recording written by `save_recording`.

    Raises
    ------
    NeurofuseError
        If there is no such file, or neurofuse did not write it.
    """
    path = Path(path)
    try:
        found = xr.open_dataset(path, engine="h5netcdf")
    except FileNotFoundError:
        raise NeurofuseError(f"there is no file '{path}'; check the path.") from None
    except OSError as error:
        raise NeurofuseError(
            f"'{path}' cannot be read ({error}); give a whole .nc file that neurofuse wrote."
        ) from None
    with found as head:
        if head.attrs.get("layout") != RECORDING_LAYOUT:
            raise NeurofuseError(
                f"'{path}' is not a neurofuse recording; its layout is {head.attrs.get('layout')!r}."
            )
        head.load()
    trials = pd.DataFrame({_column(n, "trials_"): v.values for n, v in head.data_vars.items()})
    if trials.columns.empty:
        trials = pd.DataFrame({"start_s": [], "stop_s": []})
    streams = [
        _stream_from(_group(path, f"stream{k}")) for k in range(len(json.loads(head.attrs["streams"])))
    ]
    movement = None
    try:
        kept = _group(path, "movement")
        movement = Movement(str(kept.attrs["name"]), kept["data"], float(kept.attrs["sample_s"]))
    except (OSError, KeyError):
        pass
    provenance = tuple(json.loads(head.attrs["provenance"]))
    return Recording(
        str(head.attrs["name"]), str(head.attrs["reference"]), tuple(streams), movement, trials, provenance
    )


class whole_file:
    """A context whose value is a temporary path next to `path`, moved into place on success only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".partial-", suffix=self.path.suffix)
        except OSError as error:
            raise NeurofuseError(
                f"cannot write '{self.path}': {error.strerror or error}; choose a folder you may write to."
            ) from None
        os.close(handle)
        self.partial = Path(name)
        return self.partial

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                os.chmod(self.partial, 0o644)
                os.replace(self.partial, self.path)
        except OSError as error:
            raise NeurofuseError(
                f"cannot write '{self.path}': {error.strerror or error}; choose another name."
            ) from None
        finally:
            self.partial.unlink(missing_ok=True)


def _plain(column: pd.Series) -> np.ndarray:
    if column.dtype.kind in "fiub":
        return column.to_numpy()
    return column.astype(str).to_numpy(dtype=object)


def _key(column: object) -> str:
    """A column's name as a netCDF variable may be called: a slash there would mean a folder."""
    return str(column).replace("%", "%25").replace("/", "%2F")


def _column(variable: object, prefix: str) -> str:
    return str(variable).removeprefix(prefix).replace("%2F", "/").replace("%25", "%")


def _stream_dataset(stream: Stream) -> xr.Dataset:
    attrs: dict[str, str | float] = {"name": stream.name, "clock": stream.clock}
    if isinstance(stream, Signal):
        attrs |= {"kind": stream.kind, "sample_s": stream.sample_s}
        return xr.Dataset({"data": stream.data}, attrs=attrs)
    variables: dict[str, tuple[object, np.ndarray]] = {
        "times_s": ("spike", stream.times_s),
        "unit": ("spike", stream.unit),
        "support": (("stretch", "edge"), stream.support),
    }
    variables |= {f"units_{_key(c)}": ("unit_row", _plain(stream.units[c])) for c in stream.units.columns}
    return xr.Dataset(variables, attrs=attrs | {"kind": "spikes"})


def _stream_from(dataset: xr.Dataset) -> Stream:
    name, clock, kind = (str(dataset.attrs[k]) for k in ("name", "clock", "kind"))
    if kind != "spikes":
        return Signal(name, clock, dataset["data"], kind, float(dataset.attrs["sample_s"]))  # type: ignore[arg-type]
    units = pd.DataFrame(
        {_column(n, "units_"): v.values for n, v in dataset.data_vars.items() if str(n).startswith("units_")}
    )
    return Spikes(
        name, clock, dataset["times_s"].values, dataset["unit"].values, units, dataset["support"].values
    )


def _group(path: Path, group: str) -> xr.Dataset:
    # What a signal's unit is called ("s", "days since ...") must not turn its samples into dates.
    with xr.open_dataset(path, engine="h5netcdf", group=group, decode_times=False) as dataset:
        return dataset.load()
