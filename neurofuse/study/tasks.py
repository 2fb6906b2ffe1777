"""In: a pure function and the coordinates of its tasks. Out: one file a task, whatever was killed on the way.

Tasks run in processes of this machine or on a Dask cluster, and give the same results on either: a task is a
function of plain values alone, and what it returns is plain too. This process alone writes: a file appears whole or
not at all, so a run that was stopped goes on from the files that are there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neurofuse.recording import NeurofuseError
from neurofuse.storage import whole_file

# `work(context, coordinates)`: both plain, the first the same for all tasks. Found again by module and name.
Work = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
# How often a task that took its worker down is tried again before it is set aside.
RETRIES = 2
# A worker with nothing to do may take this long to leave.
GOODBYE_S = 10.0
# Workers that die one after the other before they could begin: the fault is not in a task.
MOST_FALSE_STARTS = 3


@dataclass(frozen=True)
class Task:
    """One call: a name that a file can have, and plain values."""

    key: str
    coordinates: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """What became of a task.

    Parameters
    ----------
    status : str
        "ok"; "failed", it raised; "quarantined", it took its worker down at every try; "missing", it never ended.
    message : str
        Why not, in one line.
    result : dict
        What it returned, empty unless it is ok.
    """

    status: str
    message: str = ""
    result: dict[str, Any] | None = None


def run_tasks(
    work: Work,
    tasks: Sequence[Task],
    *,
    folder: Path,
    context: dict[str, Any],
    jobs: int = 1,
    scheduler: Any = None,
    progress: bool = False,
) -> dict[str, Record]:
    """Run what has no result yet, and return what became of every task.

    Parameters
    ----------
    work : callable
        A function of a module, `work(context, coordinates) -> dict`, both plain; what it returns must be JSON.
    tasks : sequence of Task
        Started in this order.
    folder : Path
        Holds `KEY.json` for every task that ended; those that are ok are not run again.
    context : dict
        Given to every task; sent to every worker once.
    jobs : int
        Worker processes; 0 runs the tasks in this one, where nothing protects it from them.
    scheduler : str or distributed.Client, optional
        A Dask cluster to run them on instead.
    progress : bool
        Show a bar with the time left on stderr.

    Returns
    -------
    dict of key -> Record

    Raises
    ------
    NeurofuseError
        If there is no such cluster, or workers cannot start at all.

    Notes
    -----
    A process has one task at a time, so a worker that is killed costs and accuses that task alone: it is tried twice
    more, last of all, and then quarantined. Dask counts for itself (`distributed.scheduler.allowed-failures`), and
    what it gives up is tried again alone; a cluster without workers is waited for.
    """
    if jobs < 0:
        raise NeurofuseError(f"jobs must be zero or more, got {jobs}.")
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".partial-*"):
        leftover.unlink(missing_ok=True)
    records = {t.key: read_record(folder, t.key) for t in tasks}
    todo = [t for t in tasks if records[t.key].status != "ok"]
    if not todo:
        return records
    if scheduler is not None:
        ended = _on_dask(work, todo, context, scheduler)
    elif jobs == 0:
        ended = ((t, _attempt(work, context, t.coordinates)) for t in todo)
    else:
        ended = _in_processes(work, todo, context, jobs)
    bar = tqdm(
        total=len(tasks),
        initial=len(tasks) - len(todo),
        desc="study",
        unit="task",
        smoothing=0.05,
        file=sys.stderr,
        disable=not progress,
        mininterval=0.1 if sys.stderr.isatty() else 20.0,
    )
    counts: Counter[str] = Counter()
    with bar, closing(ended):
        for task, record in ended:
            _write_record(folder, task, record)
            records[task.key] = record
            counts[record.status] += record.status != "ok"
            bar.set_postfix({k: n for k, n in counts.items() if n}, refresh=False)
            bar.update()
    return records


def read_record(folder: Path, key: str) -> Record:
    """What is on disk of a task; "missing" where there is nothing, or nothing that can be read."""
    try:
        kept = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        return Record(kept["status"], kept["message"], kept["result"])
    except (OSError, ValueError, LookupError, TypeError):
        return Record("missing", "it has not been run")


def _write_record(folder: Path, task: Task, record: Record) -> None:
    kept = {
        "status": record.status,
        "message": record.message,
        "coordinates": task.coordinates,
        "result": record.result,
    }
    with whole_file(folder / f"{task.key}.json") as partial:
        partial.write_text(json.dumps(kept, allow_nan=False), encoding="utf-8")


def _attempt(work: Work, context: dict[str, Any], coordinates: dict[str, Any]) -> Record:
    """Run one task; what it raises becomes its record, for a pure function would raise it again."""
    try:
        result = work(context, coordinates)
        json.dumps(result, allow_nan=False)
    except NeurofuseError as error:
        return Record("failed", " ".join(str(error).split()))
    except Exception as error:
        return Record("failed", " ".join(f"{type(error).__name__}: {error}".split()))
    return Record("ok", "", result)


# Processes of this machine


class _Worker:
    """A process that runs one task at a time."""

    def __init__(self, work: Work) -> None:
        # A fresh interpreter: a forked one would inherit the locks of torch's threads, held or not.
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        # With its end closed here, the death of the worker is the end of the pipe.
        theirs.close()
        self.ready = False
        self.task: Task | None = None

    def heard(self) -> Record | None:
        """What it said last; None when it died."""
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):
            return None
        return Record(**said)

    def begin(self, context: dict[str, Any]) -> None:
        """Hand it what all tasks share, once it listens: handed over at its start, it blocks if the worker dies."""
        self.ready = True
        with suppress(OSError):
            self.pipe.send(context)

    def give(self, task: Task) -> None:
        """Hand it a task; one that has died meanwhile will not answer, which tells."""
        self.task = task
        with suppress(OSError):
            self.pipe.send(task.coordinates)

    def stop(self) -> None:
        """End it: by itself if it has nothing to do, so that it clears up what it holds, else at once."""
        self.pipe.close()
        if self.ready and self.task is None:
            self.process.join(GOODBYE_S)
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, work: Work) -> None:
    """What a worker does until nobody asks any more."""
    # Ctrl-C reaches the whole group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The bars of a training share no screen; the lock tqdm makes for processes outlives a worker that is killed.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    pipe.send({"status": "ready"})
    try:
        context = pipe.recv()
        while True:
            record = _attempt(work, context, pipe.recv())
            pipe.send({"status": record.status, "message": record.message, "result": record.result})
    except (EOFError, OSError):
        return


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_processes(
    work: Work, tasks: Sequence[Task], context: dict[str, Any], jobs: int
) -> Generator[tuple[Task, Record]]:
    waiting = deque(tasks)
    tries: Counter[str] = Counter()
    false_starts = 0
    crew = [_Worker(work) for _ in range(min(jobs, len(tasks)))]
    try:
        while waiting or any(w.task for w in crew):
            for worker in crew:
                if worker.ready and worker.task is None and waiting:
                    worker.give(waiting.popleft())
            at_work = {w.pipe: w for w in crew if w.task is not None or not w.ready}
            for pipe in wait(list(at_work)):
                worker = at_work[pipe]  # type: ignore[index]
                task, said = worker.task, worker.heard()
                if said is not None and said.status == "ready":
                    worker.begin(context)
                    false_starts = 0
                    continue
                worker.task = None
                if said is not None:
                    assert task is not None
                    yield task, said
                    continue
                code = _put_down(worker, crew, work)
                if task is None:
                    false_starts += 1
                    if false_starts >= MOST_FALSE_STARTS:
                        raise NeurofuseError(
                            f"worker processes end before they begin ({code}); run a script's own code under "
                            "`if __name__ == '__main__':`, or pass jobs=0 to work without them."
                        )
                    continue
                tries[task.key] += 1
                if tries[task.key] <= RETRIES:
                    waiting.append(task)
                else:
                    yield (
                        task,
                        Record("quarantined", f"its worker died at each of {RETRIES + 1} tries ({code})"),
                    )
    finally:
        for worker in crew:
            worker.stop()


def _put_down(worker: _Worker, crew: list[_Worker], work: Work) -> str:
    """Replace a worker that died, and say what of."""
    worker.stop()
    code = worker.process.exitcode or 0
    crew[crew.index(worker)] = _Worker(work)
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"


# A Dask cluster


def _same(context: dict[str, Any]) -> dict[str, Any]:
    return context


def _on_dask(
    work: Work, tasks: Sequence[Task], context: dict[str, Any], scheduler: Any
) -> Generator[tuple[Task, Record]]:
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError:
        raise NeurofuseError(
            "a Dask cluster needs the extra 'dask': pip install 'neurofuse[dask]'; or use --jobs for this machine."
        ) from None
    ours = not isinstance(scheduler, Client)
    try:
        # Not the default one: what this process does beside must not look for it.
        client = Client(scheduler, timeout=10, set_as_default=False) if ours else scheduler
    except (OSError, ValueError, TypeError) as error:
        raise NeurofuseError(
            f"no Dask scheduler answers at '{scheduler}' ({error}); give its address, such as tcp://HOST:8786."
        ) from None
    futures: dict[Any, Task] = {}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sending large graph")
            # The result of a task, not scattered: what is scattered dies with the workers that hold it.
            shared = client.submit(_same, context, pure=False)

        def submit(some: Sequence[Task]) -> list[Any]:
            found = [client.submit(_attempt, work, shared, t.coordinates, pure=False) for t in some]
            futures.update(zip(found, some, strict=True))
            return found

        suspects: list[Task] = []
        done = as_completed(submit(tasks))
        for future in done:
            task = futures.pop(future)
            try:
                yield task, future.result()
            except (KilledWorker, CancelledError):
                # Dask accuses all that was at the worker, so every suspect is heard by itself.
                suspects.append(task)
        for task in suspects:
            (future,) = submit([task])
            try:
                record = future.result()
            except (KilledWorker, CancelledError) as error:
                record = Record(
                    "quarantined", f"workers died of it, with no other task about ({type(error).__name__})"
                )
            del futures[future]
            yield task, record
    finally:
        if futures:
            client.cancel(list(futures))
        if ours:
            client.close()
