"""In: a recording as it was read, and a `Request`. Out: the streams, units, channels and axes that it selects."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol, Self, TypeVar

from data_loaders.formats import FileInfo, Item, LoadError, NoSuchName, Part, Request, listed
from neurofuse.recording import Recording, Signal, Spikes, Stream


class _Named(Protocol):
    """A stream or movement: units, channels or axes under one name."""

    @property
    def name(self) -> str: ...

    @property
    def members(self) -> list[str]: ...

    def select(self, rows: Sequence[int], /) -> Self: ...


T = TypeVar("T", bound=_Named)


def select(
    recording: Recording, request: Request, path: Path, *, left_out: Collection[str] = ()
) -> Recording:
    """Keep what a request selects, whether or not its reader has selected before.

    Parameters
    ----------
    recording : Recording
        What a reader returned.
    request : Request
        None keeps a role, () drops it, names pick streams, or units, channels and axes inside them, in that order.
        Names that the reader resolved itself (`Request.pick`) are not resolved again.
    path : path
        The file, as messages name it.
    left_out : collection of str
        Streams that are not taken by default.

    Raises
    ------
    NoSuchName
        For the first name that is not there; the sentence lists those that are.
    LoadError
        If several streams hold a name.
    """
    streams: dict[int, Stream] = {}
    roles: tuple[Part, ...] = ("spikes", "lfp")
    for role in roles:
        of_role = {s.name: k for k, s in enumerate(recording.streams) if s.role == role}
        kept = _selected([recording.streams[k] for k in of_role.values()], role, request, path, left_out)
        # The places of what is kept stay, so that one role does not move the other.
        places = sorted(of_role[s.name] for s in kept)
        streams |= dict(zip(places, kept, strict=True))
    moved = [] if recording.movement is None else [recording.movement]
    movement = _selected(moved, "movement", request, path, left_out)
    return recording.but(
        streams=tuple(streams[k] for k in sorted(streams)), movement=movement[0] if movement else None
    )


def _selected(
    parts: Sequence[T], role: Part, request: Request, path: Path, left_out: Collection[str]
) -> list[T]:
    names = request.names(role)
    if names == ():
        return []
    if role in request.picked:
        return list(parts)
    if names is None:
        return [p for p in parts if p.name not in left_out]
    whole = {p.name: p for p in parts}
    rows: dict[str, list[int]] = {}
    for name in names:
        if name in whole:
            rows[name] = list(range(len(whole[name].members)))
            continue
        inside = {
            p.name: [k for k, m in enumerate(p.members) if m == name] for p in parts if name in p.members
        }
        if not inside:
            raise NoSuchName(path, name, [*whole, *(m for p in parts for m in p.members)], role=role)
        if len(inside) > 1:
            raise LoadError(
                f"'{path.name}' has '{name}' in {listed(list(inside))}; select one of these as a whole."
            )
        ((owner, found),) = inside.items()
        rows.setdefault(owner, []).extend(k for k in found if k not in rows[owner])
    return [
        whole[n].select(r) if r != list(range(len(whole[n].members))) else whole[n] for n, r in rows.items()
    ]


def describe_recording(recording: Recording, path: Path, format_name: str) -> FileInfo:
    """Items of a recording that is already in memory; all are taken by default."""
    items: list[Item] = []
    for s in recording.streams:
        counted = s.role == "spikes"
        signal = s if isinstance(s, Signal) else None
        items.append(
            Item(
                s.name,
                "spikes" if signal is None else "counts" if counted else "lfp",
                n_units=len(s.members) if counted else None,
                n_channels=None if counted else len(s.members),
                n_spikes=s.times_s.size if isinstance(s, Spikes) else None,
                n_samples=None if signal is None else signal.time_s.size,
                rate_hz=None if signal is None else signal.rate_hz,
                unit="s" if signal is None else str(signal.data.attrs.get("units", "")),
                duration_s=s.stop_s - s.start_s,
                clock=s.clock,
                n_segments=max(len(s.support), 1),
                members=tuple(s.members),
                default=True,
            )
        )
    m = recording.movement
    if m is not None:
        items.append(
            Item(
                m.name,
                "movement",
                n_channels=len(m.axes),
                n_samples=m.time_s.size,
                rate_hz=1 / m.sample_s,
                unit=m.units,
                duration_s=recording.span_s[1] - recording.span_s[0],
                clock=recording.reference,
                n_segments=max(len(m.support), 1),
                members=tuple(m.axes),
                default=True,
            )
        )
    if len(recording.trials):
        items.append(
            Item("trials", "trials", shape=recording.trials.shape, clock=recording.reference, default=True)
        )
    return FileInfo(str(path), format_name, tuple(items), recording.provenance)
