"""In: a plain file (.mat, .npz, .npy, .h5, .csv, .nc). Out: its arrays by name, read when they are used.

Names of nested arrays join their parts: `group/dataset` in HDF5 and netCDF, `struct.field` in MATLAB.
Nothing here unpickles: a file that holds Python objects is refused.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_loaders.formats import LoadError
from neurofuse.recording import FloatArray

LeafKind = Literal["numbers", "ragged", "structs", "text"]


@dataclass(frozen=True)
class Ragged:
    """A nested list of vectors: spike times per unit, the path to each unit, and when units were observed."""

    vectors: tuple[FloatArray, ...]
    paths: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Leaf:
    """One array of a file: its size, and how to read it.

    Parameters
    ----------
    kind : {"numbers", "ragged", "structs", "text"}
        "numbers" loads as an array, "ragged" as `Ragged`, "structs" as a list of dicts.
    """

    name: str
    kind: LeafKind
    shape: tuple[int, ...]
    load: Callable[[], Any]
    matlab: bool = False


def open_arrays(path: Path) -> dict[str, Leaf]:
    """Every array of a plain file, by name, in the order of the file.

    Raises
    ------
    LoadError
        If the suffix is not one of a plain file.
    """
    suffix = path.suffix.lower()
    readers: dict[str, Callable[[Path], Iterator[Leaf]]] = {
        ".npy": _npy,
        ".npz": _npz,
        ".csv": _table,
        ".tsv": _table,
        ".txt": _table,
        ".h5": _hdf5,
        ".hdf5": _hdf5,
        ".hdf": _hdf5,
        ".nc": _netcdf,
        ".cdf": _netcdf,
        ".mat": _mat,
    }
    if suffix not in readers:
        raise LoadError(
            f"'{path.name}': '{suffix}' is not a plain array file; those end in {', '.join(readers)}."
        )
    return {leaf.name: leaf for leaf in readers[suffix](path)}


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5 inside (MATLAB's carry a 512-byte preface)."""
    with path.open("rb") as file:
        head = file.read(520)
    return head[:8] == b"\x89HDF\r\n\x1a\n" or head[512:520] == b"\x89HDF\r\n\x1a\n"


def as_trains(value: object) -> Ragged:
    """Flatten nested cells, lists and structs with a field of times into one vector per unit.

    A struct counts as a unit if it has a field `time`, `times`, `t`, `ts`, `timestamps` or `spike_times`;
    its field `timerange`, if there, is when it was observed. Empty cells are no units.
    """
    vectors: list[FloatArray] = []
    paths: list[str] = []
    ranges: list[tuple[float, float]] = []
    for where, vector, span in _walk(value, ()):
        vectors.append(vector)
        paths.append(".".join(str(k + 1) for k in where) or "1")
        if span is not None:
            ranges.append(span)
    # Levels that hold one thing everywhere carry no information: "1.1.3.2" of a doubly wrapped cell becomes "3.2".
    parts = [p.split(".") for p in paths]
    while len(parts) > 1 and min(len(p) for p in parts) > 1 and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    same = len(ranges) == len(vectors)
    return Ragged(tuple(vectors), tuple(".".join(p) for p in parts), tuple(ranges) if same else ())


_TIME_FIELDS = ("time", "times", "t", "ts", "timestamps", "spike_times", "spiketimes", "spikes")


def _walk(value: object, where: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], FloatArray, Any]]:
    if isinstance(value, dict):
        field = next((f for f in _TIME_FIELDS if f in value), None)
        if field is not None:
            vector = np.asarray(value[field])
            if vector.dtype.kind in "fiu" and vector.size:
                span = np.asarray(value.get("timerange", ())).ravel()
                limits = (
                    (float(span[0]), float(span[-1])) if span.size == 2 and span.dtype.kind in "fiu" else None
                )
                yield where, vector.astype(np.float64).ravel(), limits
        return
    if isinstance(value, list):
        for k, part in enumerate(value):
            yield from _walk(part, (*where, k))
        return
    array = np.asarray(value)
    if array.dtype.kind in "fiu" and array.size and max(array.shape, default=1) == array.size:
        yield where, array.astype(np.float64).ravel(), None


def _refuse_objects(path: Path, name: str) -> LoadError:
    return LoadError(
        f"'{path.name}': '{name}' holds pickled Python objects, which can run code when read; "
        "save plain number arrays instead (np.savez without object arrays)."
    )


def _npy(path: Path) -> Iterator[Leaf]:
    with path.open("rb") as file:
        shape, dtype = _npy_header(file)
    yield _numpy_leaf(path, path.stem, shape, dtype, lambda: np.load(path, allow_pickle=False))


def _npz(path: Path) -> Iterator[Leaf]:
    with zipfile.ZipFile(path) as archive:
        members = [n for n in archive.namelist() if n.endswith(".npy")]
        heads = []
        for member in members:
            with archive.open(member) as file:
                heads.append(_npy_header(file))
    for member, (shape, dtype) in zip(members, heads, strict=True):
        name = member.removesuffix(".npy")
        yield _numpy_leaf(path, name, shape, dtype, partial(_npz_member, path, name))


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _npz_member(path: Path, name: str) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as archive:
        return np.asarray(archive[name])


def _same(value: Any) -> Any:
    return value


def _numpy_leaf(
    path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], load: Callable[[], NDArray[Any]]
) -> Leaf:
    if dtype.hasobject:

        def refuse() -> NDArray[Any]:
            raise _refuse_objects(path, name)

        return Leaf(name, "ragged", shape, refuse)
    return Leaf(name, "numbers" if dtype.kind in "fiub" else "text", shape, load)


def _table(path: Path) -> Iterator[Leaf]:
    import pandas as pd

    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline().strip()
    counts = {s: first.count(s) for s in (",", ";", "\t")}
    separator = max(counts, key=lambda s: counts[s]) if any(counts.values()) else r"\s+"
    separator = "," if path.suffix.lower() == ".csv" and not any(counts.values()) else separator
    cells = [c.strip().strip('"') for c in re.split(separator, first)]
    numeric = all(_is_number(c) for c in cells)
    frame = pd.read_csv(
        path, sep=separator, header=None if numeric else 0, encoding="utf-8-sig", skipinitialspace=True
    )
    if frame.empty:
        raise LoadError(f"'{path.name}' holds no rows; a table needs a header line and numbers below it.")
    for k, column in enumerate(frame.columns):
        values = frame[column].to_numpy()
        name = f"column{k}" if numeric else str(column).strip()
        if values.dtype.kind not in "fiub":
            _refuse_stray_text(path, name, frame[column], first_line=1 if numeric else 2)
        yield Leaf(
            name, "numbers" if values.dtype.kind in "fiub" else "text", values.shape, partial(_same, values)
        )


def _refuse_stray_text(path: Path, name: str, column: Any, *, first_line: int) -> None:
    """A column that holds numbers but for a few cells is not text; leaving it out would go unnoticed."""
    import pandas as pd

    wrong = (pd.to_numeric(column, errors="coerce").isna() & column.notna()).to_numpy()
    if 0 < wrong.sum() <= 0.1 * wrong.size:
        row = int(wrong.argmax())
        raise LoadError(
            f"'{path.name}', line {row + first_line}, column '{name}': '{column.iloc[row]}' is not a number; "
            f"correct {'this cell' if wrong.sum() == 1 else f'these {wrong.sum()} cells'} or leave it empty."
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _hdf5(path: Path) -> Iterator[Leaf]:
    import h5py

    def load(name: str, field: str | None) -> NDArray[Any]:
        with h5py.File(path, "r") as file:
            values = file[name][()]
        return np.asarray(values if field is None else values[field])

    def load_ragged(name: str) -> Ragged:
        return as_trains(list(load(name, None)))

    found: list[Leaf] = []

    def visit(name: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset):
            return
        if node.dtype.names:
            for field in node.dtype.names:
                kind: LeafKind = "numbers" if node.dtype[field].kind in "fiub" else "text"
                found.append(Leaf(f"{name}.{field}", kind, node.shape, partial(load, name, field)))
            return
        vlen = h5py.check_vlen_dtype(node.dtype)
        if vlen is not None and np.dtype(vlen).kind in "fiu":
            found.append(Leaf(name, "ragged", node.shape, partial(load_ragged, name)))
            return
        kind = "numbers" if node.dtype.kind in "fiub" else "text"
        found.append(Leaf(name, kind, node.shape, partial(load, name, None)))

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    yield from found


def _netcdf(path: Path) -> Iterator[Leaf]:
    import xarray as xr

    def load(name: str) -> NDArray[Any]:
        with xr.open_dataset(path, decode_times=False) as dataset:
            return np.asarray(dataset[name].values)

    with xr.open_dataset(path, decode_times=False) as dataset:
        found = [(str(n), v.dtype, v.shape) for n, v in dataset.variables.items()]
    for name, dtype, shape in found:
        yield Leaf(name, "numbers" if dtype.kind in "fiub" else "text", shape, partial(load, name))


def _mat(path: Path) -> Iterator[Leaf]:
    if is_hdf5(path):
        yield from _mat_v73(path)
        return
    import scipy.io

    numbers = {"double", "single", "logical", "sparse"} | {
        f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)
    }

    def load(name: str) -> Any:
        value = scipy.io.loadmat(path, variable_names=[name])[name]
        return value.toarray() if hasattr(value, "toarray") else value

    def load_numbers(name: str) -> NDArray[Any]:
        return np.asarray(load(name))

    for name, shape, matlab_class in scipy.io.whosmat(path):
        if matlab_class in numbers:
            yield Leaf(name, "numbers", shape, partial(load_numbers, name), matlab=True)
        elif matlab_class in ("struct", "cell"):
            # whosmat does not list what is inside, so structs and cells are read to be listed.
            yield from _nested(name, _python(load(name)))


def _python(value: Any) -> Any:
    """A scipy value as lists (cells, struct arrays), dicts (structs) and arrays."""
    array = np.asarray(value)
    if array.dtype.names:
        rows = [{n: _python(row[n]) for n in array.dtype.names} for row in array.ravel(order="F")]
        return rows[0] if len(rows) == 1 else rows
    if array.dtype == object:
        return [_python(v) for v in array.ravel(order="F")]
    return array


def _nested(name: str, value: Any) -> Iterator[Leaf]:
    if isinstance(value, dict):
        for field, part in value.items():
            yield from _nested(f"{name}.{field}", part)
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        yield Leaf(name, "structs", (len(value),), partial(_same, value), matlab=True)
    elif isinstance(value, list):
        yield Leaf(name, "ragged", (len(value),), partial(as_trains, value), matlab=True)
    elif value.dtype.kind in "fiub":
        yield Leaf(name, "numbers", value.shape, partial(_same, value), matlab=True)
    else:
        yield Leaf(name, "text", value.shape, partial(_same, value), matlab=True)


def _mat_v73(path: Path) -> Iterator[Leaf]:
    import h5py

    def array_of(node: Any) -> NDArray[Any]:
        if "MATLAB_empty" in node.attrs:
            return np.empty((0, 0))
        # MATLAB is column-major: what h5py shows is the transpose of what the user wrote.
        values = np.asarray(node[()]).T
        if node.attrs.get("MATLAB_class", b"") == b"char":
            return np.array(["".join(chr(int(c)) for c in values.ravel())])
        return values

    def python(node: Any, file: Any) -> Any:
        if isinstance(node, h5py.Group):
            fields = {n: python(node[n], file) for n in node}
            lengths = {len(v) for v in fields.values() if isinstance(v, list)}
            if fields and all(isinstance(v, list) for v in fields.values()) and len(lengths) == 1:
                return [{n: fields[n][k] for n in fields} for k in range(lengths.pop())]
            return fields
        if h5py.check_ref_dtype(node.dtype) is not None:
            return [python(file[ref], file) for ref in np.asarray(node[()]).T.ravel(order="F")]
        return array_of(node)

    def load(name: str) -> NDArray[Any]:
        with h5py.File(path, "r") as file:
            return array_of(file[name])

    def leaves(name: str, node: Any, file: Any) -> Iterator[Leaf]:
        is_group = isinstance(node, h5py.Group)
        if is_group and any(
            isinstance(v, h5py.Dataset) and h5py.check_ref_dtype(v.dtype) is not None for v in node.values()
        ):
            yield from _nested(name.replace("/", "."), python(node, file))
        elif is_group:
            for part in node:
                yield from leaves(f"{name}/{part}", node[part], file)
        elif h5py.check_ref_dtype(node.dtype) is not None:
            yield from _nested(name.replace("/", "."), python(node, file))
        else:
            text = node.attrs.get("MATLAB_class", b"") == b"char" or node.dtype.kind not in "fiub"
            shape = (0,) if "MATLAB_empty" in node.attrs else node.shape[::-1]
            kind: LeafKind = "text" if text else "numbers"
            yield Leaf(name.replace("/", "."), kind, shape, partial(load, name), matlab=True)

    with h5py.File(path, "r") as file:
        found = [leaf for n in file if not n.startswith("#") for leaf in leaves(n, file[n], file)]
    yield from found
