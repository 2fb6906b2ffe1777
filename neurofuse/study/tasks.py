"""In: a pure function and the coordinates of its tasks. Out: one file per task, whatever ended on the way.

Tasks run in processes of this machine or on a Dask cluster, with the same results on either: a task is a function of
plain values alone, and so is what it returns. Only this process writes files, and a file appears whole or not at all,
so a run that was stopped continues from the files that exist. Every wait for a process or a cluster has a deadline;
a task itself may take as long as it needs.

A process has one task at a time, so a worker that dies affects that task alone: it is repeated up to two more
times, after all others, and then quarantined. Dask counts deaths itself
(`distributed.scheduler.allowed-failures`), of all tasks that a worker had; those it gives up are repeated one by
one. A Dask cluster that starts its own workers, such as a LocalCluster, closes one for good that is still being
restarted some seconds after it died (`distributed.deploy.lost-worker-timeout`); `cluster.adapt` replaces it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import cloudpickle
from tqdm import tqdm

from neurofuse.errors import NeurofuseError
from neurofuse.storage import whole_file

# `work(context, coordinates)`: both plain, the first the same for all tasks. Pickled by module and name.
Work = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
# How often a task that ended its worker is repeated before it is quarantined.
RETRIES = 2
# A worker process must be ready for its first task within this time: the import of torch on a busy machine.
START_S = 120.0
# So many workers in a row that never became ready: the cause is not a task.
MAX_FAILED_STARTS = 3
# An idle worker may take this long to end by itself, and a connection to close.
EXIT_S = 10.0
# A Dask cluster without workers, or out of reach, for this long is given up.
NO_WORKERS_S = 60.0
# Pause between two checks of which tasks on a Dask cluster have ended.
POLL_S = 0.05


@dataclass(frozen=True)
class Task:
    """One call: a key that can be a file name, and plain values."""

    key: str
    coordinates: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """How a task ended.

    Parameters
    ----------
    status : str
        "ok"; "failed", it raised an error; "quarantined", it ended its worker at every try; "missing", it never ended.
    message : str
        The reason in one line, empty if it is ok.
    result : dict
        What it returned, None unless it is ok.
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
    extensions: Sequence[type] = (),
    install: Callable[[Sequence[type]], None] | None = None,
    no_workers_s: float = NO_WORKERS_S,
) -> dict[str, Record]:
    """Run the tasks that have no result yet, and return the record of every task.

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
        Worker processes; 0 runs the tasks in this process, which a task can then end.
    scheduler : str or distributed.Client, optional
        A Dask cluster to run them on instead.
    progress : bool
        Show a bar with the time left on stderr.
    extensions : sequence of type
        Classes that exist in this process, wherever they were defined, and that workers need; sent by cloudpickle.
    install : callable, optional
        A function of a module, called once per worker process as `install(extensions)` before its first task; it must
        accept classes that are installed already. Needed with `extensions`.
    no_workers_s : float
        Seconds after which a Dask cluster without workers, or out of reach, is given up.

    Returns
    -------
    dict of key -> Record

    Raises
    ------
    NeurofuseError
        If there is no such cluster, it is lost, workers cannot start, or an extension cannot be sent to them.
    """
    if jobs < 0:
        raise NeurofuseError(f"jobs must be zero or more, got {jobs}.")
    if extensions and install is None:
        raise NeurofuseError(
            "extensions need `install`, a function of a module that registers them in a worker."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".partial-*"):
        leftover.unlink(missing_ok=True)
    records = {t.key: read_record(folder, t.key) for t in tasks}
    todo = [t for t in tasks if records[t.key].status != "ok"]
    if not todo:
        return records
    if scheduler is not None:
        shared = _Shared(context, _pack(extensions), install)
        ended = _on_dask(work, todo, shared, _Cluster(scheduler, folder, no_workers_s))
    elif jobs == 0:
        ended = ((t, _attempt(work, context, t.coordinates)) for t in todo)
    else:
        ended = _in_processes(work, todo, _Shared(context, _pack(extensions), install), jobs)
    counts: Counter[str] = Counter()
    with _bar(len(tasks), len(todo), progress) as bar, closing(ended):
        for task, record in ended:
            _write_record(folder, task, record)
            records[task.key] = record
            counts[record.status] += record.status != "ok"
            bar.set_postfix({k: n for k, n in counts.items() if n}, refresh=False)
            bar.update()
    return records


def _bar(n_tasks: int, n_left: int, shown: bool) -> Any:
    return tqdm(
        total=n_tasks,
        initial=n_tasks - n_left,
        desc="study",
        unit="task",
        smoothing=0.05,
        file=sys.stderr,
        disable=not shown,
        mininterval=0.1 if sys.stderr.isatty() else 20.0,
    )


def read_record(folder: Path, key: str) -> Record:
    """The record of a task on disk; "missing" where there is none, or none that can be read."""
    try:
        saved = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        return Record(saved["status"], saved["message"], saved["result"])
    except (OSError, ValueError, LookupError, TypeError):
        return Record("missing", "it has not been run")


def _write_record(folder: Path, task: Task, record: Record) -> None:
    content = {
        "status": record.status,
        "message": record.message,
        "coordinates": task.coordinates,
        "result": record.result,
    }
    with whole_file(folder / f"{task.key}.json") as partial:
        partial.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def _attempt(work: Work, context: dict[str, Any], coordinates: dict[str, Any]) -> Record:
    """Run one task; an error it raises becomes its record, for a pure function would raise it again."""
    try:
        result = work(context, coordinates)
        json.dumps(result, allow_nan=False)
    except NeurofuseError as error:
        return Record("failed", _one_line(error))
    except Exception as error:
        return Record("failed", _one_line(f"{type(error).__name__}: {error}"))
    return Record("ok", "", result)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


# What all tasks share


@dataclass(frozen=True)
class _Shared:
    """What a worker needs before its first task.

    `extensions` is a pickle. It travels between this process and the workers it has started or was given, through
    pipes or Dask's own connections, and is never written to disk nor read from there.
    """

    context: dict[str, Any]
    extensions: bytes
    install: Callable[[Sequence[type]], None] | None


# The extensions this process has; a thread of an in-process Dask worker reads it too.
_installed = b""
_install_lock = threading.Lock()


def _pack(extensions: Sequence[type]) -> bytes:
    """Pickle classes; those a fresh interpreter could not import, with their code."""
    global _installed
    if not extensions:
        return b""
    # Classes of `__main__`, and those no module has by their name, are pickled with their code as it is.
    modules = {base.__module__ for cls in extensions for base in cls.__mro__} & set(sys.modules)
    registered = cloudpickle.list_registry_pickle_by_value()
    with ExitStack() as stack:
        for name in sorted(modules - registered - {"__main__"}):
            if _find_spec(name) is None:
                cloudpickle.register_pickle_by_value(sys.modules[name])
                stack.callback(cloudpickle.unregister_pickle_by_value, sys.modules[name])
        try:
            packed = cloudpickle.dumps(tuple(extensions))
        except Exception as error:
            names = ", ".join(cls.__qualname__ for cls in extensions)
            raise NeurofuseError(
                f"{names} cannot be sent to worker processes ({_one_line(error)}); define them in a module that can be "
                "imported, or pass jobs=0."
            ) from None
    with _install_lock:
        _installed = packed
    return packed


def _find_spec(name: str) -> Any:
    """Where a fresh interpreter finds a module; None for one that only this process holds."""
    parent, path = name.rpartition(".")[0], None
    if parent:
        path = getattr(_find_spec(parent), "submodule_search_locations", None)
        if path is None:
            return None
    found = (finder.find_spec(name, path) for finder in sys.meta_path)
    return next((spec for spec in found if spec is not None), None)


def _install_extensions(shared: _Shared) -> None:
    """Install the extensions of a run, unless this process has them."""
    global _installed
    with _install_lock:
        if shared.extensions and shared.extensions != _installed:
            assert shared.install is not None
            shared.install(pickle.loads(shared.extensions))
            _installed = shared.extensions


# Processes of this machine


class _Worker:
    """A process that runs one task at a time."""

    def __init__(self, work: Work) -> None:
        # A fresh interpreter: a forked one would inherit the locks of torch's threads, held or not.
        spawn = multiprocessing.get_context("spawn")
        self.pipe, worker_end = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(worker_end, work), daemon=True)
        self.process.start()
        # With its end closed here, the death of the worker is the end of the pipe.
        worker_end.close()
        self.ready_by = time.monotonic() + START_S
        self.ready = False
        self.task: Task | None = None
        self.sender: threading.Thread | None = None

    @property
    def overdue(self) -> bool:
        """Whether it should have been ready by now."""
        return not self.ready and time.monotonic() >= self.ready_by

    def receive(self) -> Record | None:
        """Its next message; None if it has died or is overdue."""
        try:
            return Record(**self.pipe.recv()) if self.pipe.poll() else None
        except (EOFError, OSError):
            return None

    def send_shared(self, content: bytes) -> None:
        """Send what all tasks share, in a thread: it may be more than the pipe holds, and the worker may hang."""

        def send() -> None:
            with suppress(OSError):
                self.pipe.send_bytes(content)

        self.sender = threading.Thread(target=send, daemon=True)
        self.sender.start()

    def start(self, task: Task) -> None:
        """Send a task; if the worker has died meanwhile, the next `receive` returns None."""
        self.task = task
        with suppress(OSError):
            self.pipe.send(task.coordinates)

    def stop(self) -> None:
        """End it: an idle one ends by itself and so releases what it holds; any other is killed."""
        if self.ready and self.task is None:
            self.pipe.close()
            self.process.join(EXIT_S)
        self.process.kill()
        self.process.join(EXIT_S)
        if self.sender is not None:
            self.sender.join(EXIT_S)
        self.pipe.close()


def _serve(pipe: Connection, work: Work) -> None:
    """The main loop of a worker; it ends when the parent closes the pipe."""
    # Ctrl-C reaches the whole process group; the parent decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The progress bars of training are not shown; the lock tqdm shares between processes outlives a killed worker.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        pipe.send({"status": "started"})
        content = pipe.recv_bytes()
        try:
            shared = pickle.loads(content)
            _install_extensions(shared)
        except Exception as error:
            pipe.send({"status": "unusable", "message": _one_line(f"{type(error).__name__}: {error}")})
            return
        pipe.send({"status": "ready"})
        while True:
            record = _attempt(work, shared.context, pipe.recv())
            pipe.send({"status": record.status, "message": record.message, "result": record.result})
    except (EOFError, OSError):
        return


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_processes(
    work: Work, tasks: Sequence[Task], shared: _Shared, jobs: int
) -> Generator[tuple[Task, Record]]:
    pending = deque(tasks)
    tries: Counter[str] = Counter()
    failed_starts = 0
    content = pickle.dumps(shared)
    workers = [_Worker(work) for _ in range(min(jobs, len(tasks)))]
    try:
        while pending or any(w.task for w in workers):
            for worker in workers:
                if worker.ready and worker.task is None and pending:
                    worker.start(pending.popleft())
            for worker in _wait(workers):
                task, record = worker.task, worker.receive()
                if record is None:
                    reason = _replace(worker, workers, work)
                    if task is None:
                        failed_starts += 1
                        if failed_starts >= MAX_FAILED_STARTS:
                            raise NeurofuseError(
                                f"worker processes cannot start ({reason}); run a script's own code under "
                                "`if __name__ == '__main__':`, or pass jobs=0 to work without them."
                            )
                        continue
                    tries[task.key] += 1
                    if tries[task.key] <= RETRIES:
                        pending.append(task)
                    else:
                        message = f"its worker died at each of {RETRIES + 1} tries ({reason})"
                        yield task, Record("quarantined", message)
                elif task is not None:
                    worker.task = None
                    yield task, record
                elif record.status == "started":
                    worker.send_shared(content)
                elif record.status == "ready":
                    worker.ready = True
                    failed_starts = 0
                else:
                    raise NeurofuseError(
                        f"worker processes cannot use the extensions ({record.message}); define them in a module that "
                        "can be imported, or pass jobs=0."
                    )
    finally:
        for worker in workers:
            worker.stop()


def _wait(workers: Sequence[_Worker]) -> list[_Worker]:
    """Wait for workers that have a message, have died or are overdue; a running task has no deadline."""
    active = {w.pipe: w for w in workers if w.task is not None or not w.ready}
    deadlines = [w.ready_by for w in active.values() if not w.ready]
    found = wait(list(active), max(min(deadlines) - time.monotonic(), 0.0) if deadlines else None)
    return [w for pipe, w in active.items() if pipe in found or w.overdue]


def _replace(worker: _Worker, workers: list[_Worker], work: Work) -> str:
    """Replace a worker that died or never became ready, and return the reason."""
    overdue = worker.overdue
    worker.stop()
    workers[workers.index(worker)] = _Worker(work)
    if overdue:
        return f"not ready within {START_S:g} s"
    code = worker.process.exitcode or 0
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"


# A Dask cluster


def _same(shared: _Shared) -> _Shared:
    return shared


def _attempt_on_dask(work: Work, shared: _Shared, coordinates: dict[str, Any]) -> Record:
    _install_extensions(shared)
    return _attempt(work, shared.context, coordinates)


class _Cluster:
    """A connection to a Dask cluster in which every wait has a deadline.

    Parameters
    ----------
    scheduler : str or distributed.Client
    folder : Path
        Where results are kept, for the message.
    no_workers_s : float
        See `run_tasks`.
    """

    def __init__(self, scheduler: Any, folder: Path, no_workers_s: float) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise NeurofuseError(
                "a Dask cluster needs the extra 'dask': pip install 'neurofuse[dask]'; or use --jobs for this machine."
            ) from None
        self.owned = not isinstance(scheduler, Client)
        try:
            # Not the default client: other Dask code of this process must not find it.
            self.client: Any = scheduler
            if self.owned:
                self.client = Client(scheduler, timeout=10, set_as_default=False)
            self.address = self.client.scheduler.address
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise NeurofuseError(
                f"there is no Dask scheduler at '{scheduler}' ({error}); give its address, such as tcp://HOST:8786."
            ) from None
        self.folder, self.no_workers_s = folder, no_workers_s
        self.futures: dict[Any, Task] = {}
        self.next_check = 0.0
        self.unreachable_since: float | None = None

    def unreachable(self, reason: object) -> NeurofuseError:
        """The error that ends a run."""
        return NeurofuseError(
            f"the cluster at '{self.address}' {reason}; finished cells are kept in '{self.folder}', and --resume "
            "continues from them."
        )

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A future; submission itself only queues a message."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sending large graph")
                return self.client.submit(function, *arguments, pure=False)
        except Exception as error:
            raise self.unreachable(f"accepts no tasks ({_one_line(error)})") from None

    def run(
        self, work: Work, tasks: Sequence[Task], shared: _Shared
    ) -> Generator[tuple[Task, Record | None]]:
        """Run tasks; yields each as it ends, without a record if Dask gave it up because workers died."""
        # The result of a task, not scattered: what is scattered dies with the workers that hold it.
        sent = self.submit(_same, shared)
        self.futures |= {self.submit(_attempt_on_dask, work, sent, t.coordinates): t for t in tasks}
        while self.futures:
            done = [future for future in self.futures if future.done()]
            for future in done:
                try:
                    record = self.fetch(future)
                except TimeoutError:
                    continue
                yield self.futures.pop(future), record
            self.check()
            if not done:
                time.sleep(POLL_S)

    def fetch(self, future: Any) -> Record | None:
        """The record of a task that ended, None if Dask gave it up.

        Raises
        ------
        TimeoutError
            If its result died with a worker and is computed anew.
        """
        from distributed import KilledWorker

        try:
            return future.result(timeout=self.no_workers_s)
        except KilledWorker:
            return None
        except TimeoutError:
            if future.done():
                return None
            raise
        except CancelledError as error:
            # Only this client has these futures: the connection was closed, or the scheduler has restarted.
            raise self.unreachable(f"has dropped the tasks ({_one_line(error)})") from None
        except Exception as error:
            reason = _one_line(f"{type(error).__name__}: {error}")
            raise self.unreachable(
                f"cannot run the tasks ({reason}): its workers need the packages of this one"
            ) from None

    def check(self) -> None:
        """Raise an error if the cluster has had no workers, or was out of reach, for too long.

        A worker that is busy counts as one: the scheduler lists it until its connection ends or its heartbeat stops
        (`distributed.scheduler.worker-ttl`).
        """
        if time.monotonic() < self.next_check:
            return
        start = time.monotonic()
        workers: dict[str, int] = {}
        state = "has had no workers"
        try:
            # `Client.nthreads` has no deadline.
            workers = self.client.sync(self.client.scheduler.ncores, callback_timeout=self.no_workers_s / 2)
        except Exception as error:
            state = f"has been out of reach ({_one_line(error) or type(error).__name__})"
        now = time.monotonic()
        self.next_check = now + min(self.no_workers_s / 4, 5.0)
        if workers:
            self.unreachable_since = None
        elif self.unreachable_since is None:
            self.unreachable_since = start
        elif now - self.unreachable_since >= self.no_workers_s:
            raise self.unreachable(f"{state} for {self.no_workers_s:g} s")

    def close(self) -> None:
        """Give up the tasks that are left; neither step waits for the cluster without a deadline."""
        for future in self.futures:
            future.release()
        if self.owned:
            with suppress(Exception):
                self.client.close(timeout=EXIT_S)


def _on_dask(
    work: Work, tasks: Sequence[Task], shared: _Shared, cluster: _Cluster
) -> Generator[tuple[Task, Record]]:
    try:
        repeated: list[Task] = []
        for task, record in cluster.run(work, tasks, shared):
            if record is None:
                # Dask counts a death for every task that the worker had, so each is repeated alone.
                repeated.append(task)
            else:
                yield task, record
        for task in repeated:
            for _, record in cluster.run(work, [task], shared):
                yield task, record or Record("quarantined", "its workers died while it ran alone")
    finally:
        cluster.close()
