"""The same results in one process, in two and on Dask, whatever is killed on the way. Toys replace decoders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tqdm.auto import tqdm

from neurofuse.errors import NeurofuseError
from neurofuse.study import tasks as engines
from neurofuse.study.tasks import RETRIES, Task, read_record, run_tasks

ROOT = Path(__file__).parent.parent


def draw(context, coordinates):
    """A pure function of its coordinates that can be made to fail in every way."""
    marks = context.get("marks")
    if context.get("bar"):
        tqdm([], disable=True).close()
    if coordinates["k"] == context.get("raise_at"):
        raise NeurofuseError("this one\ncannot be done.")
    if coordinates["k"] == context.get("not_json_at"):
        return {"value": float("nan")}
    if coordinates["k"] == context.get("kill_at"):
        with open(Path(marks) / "kills", "a") as file:
            file.write("x")
        time.sleep(context.get("kill_after_s", 0.0))
        os.kill(os.getpid(), signal.SIGKILL)
    if "kill_once_kept" in context and list(Path(marks).glob("ran-*")):
        # A result that nobody has fetched yet dies with its worker, so the second task waits for the file of the first.
        deadline = time.monotonic() + 30
        while not list(Path(context["kill_once_kept"]).glob("task*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    once = marks and Path(marks) / f"once-{coordinates['k']}"
    if coordinates["k"] in context.get("die_once", []) and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if marks:
        with open(Path(marks) / f"ran-{coordinates['k']}", "a") as file:
            file.write("x")
    time.sleep(context.get("sleep_s", 0.0))
    rng = np.random.default_rng([coordinates["k"], context["seed"]])
    return {"value": rng.standard_normal(3).tolist()}


def tasks(n=6):
    return [Task(f"task{k}", {"k": k}) for k in range(n)]


def values(records):
    return {key: r.result and r.result["value"] for key, r in records.items()}


def local_cluster(**settings):
    from distributed import LocalCluster

    return LocalCluster(threads_per_worker=1, dashboard_address=None, **settings)


def test_one_process_two_and_dask_give_the_same_results(tmp_path):
    from distributed import Client

    here = run_tasks(draw, tasks(), folder=tmp_path / "0", context={"seed": 5}, jobs=0)
    one = run_tasks(draw, tasks(), folder=tmp_path / "1", context={"seed": 5}, jobs=1)
    two = run_tasks(draw, tasks()[::-1], folder=tmp_path / "2", context={"seed": 5}, jobs=2)
    with local_cluster(n_workers=2, processes=False) as cluster, Client(cluster) as client:
        dask = run_tasks(draw, tasks(), folder=tmp_path / "3", context={"seed": 5}, scheduler=client)
        address = run_tasks(
            draw, tasks(), folder=tmp_path / "4", context={"seed": 5}, scheduler=cluster.scheduler_address
        )
    assert all(r.status == "ok" for r in here.values())
    assert values(here) == values(one) == values(two) == values(dask) == values(address)
    files = [{f.name: f.read_bytes() for f in (tmp_path / str(k)).iterdir()} for k in range(5)]
    assert all(f == files[0] for f in files)
    assert set(files[0]) == {f"task{k}.json" for k in range(6)}


def test_a_killed_worker_costs_a_try_of_its_own_task_alone(tmp_path):
    context = {"seed": 1, "marks": str(tmp_path), "die_once": [1, 3]}
    records = run_tasks(draw, tasks(), folder=tmp_path / "out", context=context, jobs=2)
    assert {r.status for r in records.values()} == {"ok"}
    assert all((tmp_path / f"ran-{k}").read_text() == "x" for k in range(6))
    plain = run_tasks(draw, tasks(), folder=tmp_path / "plain", context={"seed": 1}, jobs=0)
    assert values(records) == values(plain)


def test_a_task_that_kills_its_worker_is_quarantined_and_the_rest_finish(tmp_path):
    context = {"seed": 1, "marks": str(tmp_path), "kill_at": 2}
    records = run_tasks(draw, tasks(), folder=tmp_path / "out", context=context, jobs=2)
    assert records["task2"].status == "quarantined"
    assert records["task2"].message == "its worker died at each of 3 tries (SIGKILL)"
    assert (tmp_path / "kills").read_text() == "x" * (RETRIES + 1)
    assert {k for k, r in records.items() if r.status == "ok"} == {f"task{k}" for k in (0, 1, 3, 4, 5)}
    # Tasks that ran at the same time were not run twice.
    assert all((tmp_path / f"ran-{k}").read_text() == "x" for k in (0, 1, 3, 4, 5))
    # Repaired, it alone is run.
    repaired = context | {"kill_at": None}
    again = run_tasks(draw, tasks(), folder=tmp_path / "out", context=repaired, jobs=1)
    assert {r.status for r in again.values()} == {"ok"}
    assert all((tmp_path / f"ran-{k}").read_text() == "x" for k in range(6))


def test_a_task_that_raises_or_returns_no_json_has_failed_with_a_message(tmp_path):
    context = {"seed": 1, "raise_at": 0, "not_json_at": 1}
    records = run_tasks(draw, tasks(3), folder=tmp_path, context=context, jobs=0)
    assert (records["task0"].status, records["task0"].message) == ("failed", "this one cannot be done.")
    assert records["task1"].status == "failed"
    assert "JSON" in records["task1"].message
    assert records["task2"].status == "ok"


def test_half_a_file_is_no_result_and_leftovers_are_removed(tmp_path):
    first = run_tasks(draw, tasks(3), folder=tmp_path, context={"seed": 1}, jobs=0)
    whole = (tmp_path / "task1.json").read_text()
    (tmp_path / "task1.json").write_text(whole[: len(whole) // 2])
    (tmp_path / ".partial-killed.json").write_text("{")
    assert read_record(tmp_path, "task1").status == "missing"
    assert values(run_tasks(draw, tasks(3), folder=tmp_path, context={"seed": 1}, jobs=0)) == values(first)
    assert sorted(f.name for f in tmp_path.iterdir()) == [f"task{k}.json" for k in range(3)]


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(engines.os, "replace", dies, raising=False)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(draw, tasks(1), folder=tmp_path, context={"seed": 1}, jobs=0)
    assert list(tmp_path.iterdir()) == []


STUDY = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from neurofuse.study.tasks import run_tasks
from test_tasks import draw, tasks

if __name__ == "__main__":
    context = dict(seed=1, marks={marks!r}, sleep_s=0.2) | {more!r}
    run_tasks(draw, tasks({n}), folder=Path({out!r}), context=context, jobs=2)
"""


def write_script(path, *, marks, out, n=20, **more):
    text = STUDY.format(
        root=str(ROOT), tests=str(ROOT / "tests"), marks=str(marks), out=str(out), n=n, more=more
    )
    path.write_text(text, encoding="utf-8")
    return path


def test_a_study_killed_in_the_middle_continues_to_the_same_files(tmp_path):
    out, marks = tmp_path / "out", tmp_path / "marks"
    marks.mkdir()
    script = write_script(tmp_path / "study.py", marks=marks, out=out)
    study = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("task*.json"))) < 4:
        assert time.monotonic() < deadline
        assert study.poll() is None
        time.sleep(0.02)
    study.send_signal(signal.SIGKILL)
    study.wait()
    # The workers end with it; no process is left that writes.
    time.sleep(0.5)
    begun = {f.name for f in marks.iterdir()}
    time.sleep(0.5)
    assert {f.name for f in marks.iterdir()} == begun
    there = {f.name for f in out.glob("task*.json")}
    assert 4 <= len(there) < 20
    assert len(begun) - len(there) <= 2, "more than the running tasks were interrupted"
    context = {"seed": 1, "marks": str(marks)}
    run_tasks(draw, tasks(20), folder=out, context=context, jobs=1)
    run_tasks(draw, tasks(20), folder=tmp_path / "undisturbed", context={"seed": 1}, jobs=0)
    files = [{f.name: f.read_bytes() for f in folder.iterdir()} for folder in (out, tmp_path / "undisturbed")]
    assert files[0] == files[1]
    # What was there was not run again.
    again = {f"ran-{json.loads((out / name).read_text())['coordinates']['k']}" for name in there}
    assert all((marks / name).read_text() == "x" for name in again)


@pytest.mark.parametrize("shared", [0, 10**6])
def test_a_script_without_a_guard_gets_an_error_that_names_it(tmp_path, shared):
    script = write_script(tmp_path / "unguarded.py", marks=tmp_path, out=tmp_path / "out")
    script.write_text(
        script.read_text()
        .replace('if __name__ == "__main__":', "if True:")
        .replace("sleep_s=0.2", f"sleep_s=0.2, shared={shared} * 'x'")
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "if __name__ == '__main__'" in done.stderr.splitlines()[-1]


def test_killed_workers_leave_no_semaphores(tmp_path):
    """The bar of a training makes one, unless it is prevented; Python would warn of it at the end."""
    script = write_script(
        tmp_path / "bars.py", marks=tmp_path, out=tmp_path / "out", n=3, bar=True, kill_at=1, kill_after_s=0.2
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "kills").exists()
    assert done.stderr == ""


def test_a_scheduler_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(NeurofuseError, match=r"there is no Dask scheduler at 'nowhere'.*tcp://HOST:8786"):
        run_tasks(draw, tasks(1), folder=tmp_path, context={"seed": 1}, scheduler="nowhere")
    with pytest.raises(NeurofuseError, match="zero or more, got -1"):
        run_tasks(draw, tasks(1), folder=tmp_path, context={"seed": 1}, jobs=-1)


@pytest.mark.slow
def test_a_dask_worker_that_dies_is_replaced_and_the_task_that_kills_it_is_quarantined(tmp_path):
    import dask
    from distributed import Client

    # A worker that dies in the moment it registers counts as one that cannot start, and Dask gives it up.
    context = {"seed": 1, "marks": str(tmp_path), "kill_at": 2, "kill_after_s": 1.0}
    settings = {
        "distributed.scheduler.allowed-failures": 1,
        # By default a cluster closes a worker for good that is just being restarted 15 s after it died.
        "distributed.deploy.lost-worker-timeout": "10 minutes",
        "logging.distributed": "critical",
    }
    with (
        dask.config.set(settings),
        local_cluster(n_workers=1) as cluster,
        Client(cluster) as client,
    ):
        records = run_tasks(draw, tasks(4), folder=tmp_path / "out", context=context, scheduler=client)
    assert records["task2"].status == "quarantined"
    assert {k for k, r in records.items() if r.status == "ok"} == {"task0", "task1", "task3"}


# A cluster that fails


@contextmanager
def started(module, *arguments):
    """A Dask scheduler or worker in a process of its own, which ends with the block."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{module}", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def after_first_result(folder, event):
    """Run `event` in a thread as soon as `folder` holds a result."""

    def wait_and_run():
        deadline = time.monotonic() + 60
        while not list(folder.glob("task*.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        event()

    thread = threading.Thread(target=wait_and_run, daemon=True)
    thread.start()
    return thread


def assert_finished_results_are_kept(folder, n, marks):
    """Some tasks have ended, and they alone are not run again."""
    there = {f.stem for f in folder.glob("task*.json")}
    assert 1 <= len(there) < n
    context = {"seed": 1, "marks": str(marks)}
    for file in marks.glob("ran-*"):
        file.unlink()
    resumed = run_tasks(draw, tasks(n), folder=folder, context=context, jobs=0)
    assert values(resumed) == values(
        run_tasks(draw, tasks(n), folder=marks / "undisturbed", context={"seed": 1}, jobs=0)
    )
    assert {f"task{f.name[4:]}" for f in marks.glob("ran-*")} == {f"task{k}" for k in range(n)} - there


def test_a_cluster_whose_only_worker_is_killed_ends_in_an_error(tmp_path):
    out = tmp_path / "out"
    context = {"seed": 1, "marks": str(tmp_path), "kill_once_kept": str(out)}
    with (
        local_cluster(n_workers=0, processes=True) as cluster,
        started("dask_worker", cluster.scheduler_address, "--no-nanny", "--nthreads", 1, "--no-dashboard"),
    ):
        cluster.scheduler.allowed_failures = 10
        deadline = time.monotonic() + 60
        while not cluster.scheduler_info["workers"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        start = time.monotonic()
        with pytest.raises(
            NeurofuseError, match=r"has had no workers for 2 s; .* kept in '.*out', and --resume"
        ):
            run_tasks(
                draw,
                tasks(5),
                folder=out,
                context=context,
                scheduler=cluster.scheduler_address,
                no_workers_s=2.0,
            )
        assert time.monotonic() - start < 60
    assert_finished_results_are_kept(out, 5, tmp_path)


def test_a_cluster_scaled_to_nothing_ends_in_an_error(tmp_path):
    from distributed import Client

    context = {"seed": 1, "marks": str(tmp_path), "sleep_s": 0.3}
    out = tmp_path / "out"
    with local_cluster(n_workers=1, processes=False) as cluster, Client(cluster) as client:
        thread = after_first_result(out, lambda: cluster.scale(0))
        with pytest.raises(NeurofuseError, match="has had no workers for 1 s"):
            run_tasks(draw, tasks(40), folder=out, context=context, scheduler=client, no_workers_s=1.0)
        thread.join(60)
        # The caller's client is still open.
        assert client.status == "running"
    assert_finished_results_are_kept(out, 40, tmp_path)


def test_a_scheduler_that_is_closed_ends_in_an_error(tmp_path):
    context = {"seed": 1, "marks": str(tmp_path), "sleep_s": 0.3}
    out = tmp_path / "out"
    with local_cluster(n_workers=1, processes=False) as cluster:
        thread = after_first_result(out, cluster.close)
        with pytest.raises(NeurofuseError, match=r"has dropped the tasks .*lost the connection.*--resume"):
            run_tasks(draw, tasks(40), folder=out, context=context, scheduler=cluster.scheduler_address)
        thread.join(60)
    assert_finished_results_are_kept(out, 40, tmp_path)


@pytest.mark.slow
def test_a_scheduler_that_stands_still_ends_in_an_error(tmp_path):
    context = {"seed": 1, "marks": str(tmp_path), "sleep_s": 0.3}
    out, file = tmp_path / "out", tmp_path / "scheduler.json"
    arguments = ("--host", "tcp://127.0.0.1", "--port", 0, "--no-dashboard", "--scheduler-file", file)
    with (
        started("dask_scheduler", *arguments) as scheduler,
        started("dask_worker", "--no-nanny", "--nthreads", 1, "--no-dashboard", "--scheduler-file", file),
    ):
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        thread = after_first_result(out, lambda: scheduler.send_signal(signal.SIGSTOP))
        start = time.monotonic()
        with pytest.raises(NeurofuseError, match=r"has been out of reach .* for 5 s"):
            run_tasks(draw, tasks(40), folder=out, context=context, scheduler=address, no_workers_s=5.0)
        assert time.monotonic() - start < 120
        thread.join(60)
    assert_finished_results_are_kept(out, 40, tmp_path)


def test_a_worker_busy_with_a_long_task_is_waited_for(tmp_path):
    context = {"seed": 1, "sleep_s": 5.0}
    with local_cluster(n_workers=1, processes=False) as cluster:
        records = run_tasks(
            draw,
            tasks(1),
            folder=tmp_path,
            context=context,
            scheduler=cluster.scheduler_address,
            no_workers_s=2.0,
        )
    assert records["task0"].status == "ok"


# Extensions: classes that exist only in this process

INSTALLED = {}


def install(classes):
    """What a study does with decoders that were registered at run time."""
    INSTALLED.update({cls.name: cls for cls in classes})


def install_nothing(classes):
    raise ValueError("there is no room.")


def install_forever(classes):
    time.sleep(60)


def use_extension(context, coordinates):
    return {"value": INSTALLED[context["name"]](coordinates["k"]).value()}


EXTENSION = """
from dataclasses import dataclass, fields

OFFSET = 100

@dataclass(frozen=True)
class Base:
    k: int

    def value(self):
        return OFFSET + sum(getattr(self, f.name) for f in fields(self))

class Shifted(Base):
    name = "shifted"

    def value(self):
        return super().value() + 1
"""


@pytest.fixture
def shifted(monkeypatch):
    """A class of a module that has no file."""
    module = types.ModuleType("only_in_this_process")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(EXTENSION, module.__dict__)
    return module.Shifted


def test_processes_have_the_classes_of_a_module_without_a_file(tmp_path, shifted):
    run = {"context": {"name": "shifted"}, "jobs": 2, "extensions": [shifted]}
    records = run_tasks(use_extension, tasks(3), folder=tmp_path / "a", install=install, **run)
    assert values(records) == {"task0": 101, "task1": 102, "task2": 103}
    # It was installed in the workers alone, and the module is pickled by name again.
    assert "shifted" not in INSTALLED
    assert engines.cloudpickle.list_registry_pickle_by_value() == set()
    with pytest.raises(NeurofuseError, match=r"cannot use the extensions \(ValueError: there is no room.\)"):
        run_tasks(use_extension, tasks(3), folder=tmp_path / "b", install=install_nothing, **run)
    with pytest.raises(NeurofuseError, match="extensions need `install`"):
        run_tasks(use_extension, tasks(3), folder=tmp_path / "c", **run)


def test_dask_workers_have_the_classes_of_a_module_without_a_file(tmp_path, shifted, monkeypatch):
    run = {"context": {"name": "shifted"}, "extensions": [shifted], "install": install}
    expected = {"task0": 101, "task1": 102, "task2": 103}
    with local_cluster(n_workers=1) as cluster:
        run["scheduler"] = cluster.scheduler_address
        assert values(run_tasks(use_extension, tasks(3), folder=tmp_path / "a", **run)) == expected
        # A worker outlives a run; the next one brings its own classes.
        monkeypatch.setattr(sys.modules[shifted.__module__], "OFFSET", 200)
        again = values(run_tasks(use_extension, tasks(3), folder=tmp_path / "b", **run))
        assert again == {key: value + 100 for key, value in expected.items()}
        run["install"] = install_nothing
        monkeypatch.setattr(sys.modules[shifted.__module__], "OFFSET", 300)
        with pytest.raises(NeurofuseError, match=r"cannot run the tasks \(ValueError: there is no room.\)"):
            run_tasks(use_extension, tasks(3), folder=tmp_path / "c", **run)
    # A worker within this process uses the class that is there.
    monkeypatch.setitem(INSTALLED, "shifted", shifted)
    with local_cluster(n_workers=1, processes=False) as cluster:
        run["scheduler"] = cluster.scheduler_address
        records = run_tasks(use_extension, tasks(3), folder=tmp_path / "d", **run)
    assert {r.status for r in records.values()} == {"ok"}
    assert INSTALLED["shifted"] is shifted


@pytest.mark.parametrize("dask", [False, True])
def test_workers_have_the_classes_of_a_script(tmp_path, dask):
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
{EXTENSION}
if __name__ == "__main__":
    import json
    from pathlib import Path
    from neurofuse.study.tasks import run_tasks
    from test_tasks import install, local_cluster, tasks, use_extension, values

    run = dict(folder=Path({str(tmp_path / "out")!r}), context=dict(name="shifted"))
    run |= dict(extensions=[Shifted], install=install)
    if {dask}:
        with local_cluster(n_workers=1) as cluster:
            records = run_tasks(use_extension, tasks(2), scheduler=cluster.scheduler_address, **run)
    else:
        records = run_tasks(use_extension, tasks(2), jobs=2, **run)
    print(json.dumps(values(records)))
""",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"task0": 101, "task1": 102}


def test_an_extension_that_cannot_be_pickled_is_an_error(tmp_path):
    class Locked:
        lock = threading.Lock()

    with pytest.raises(NeurofuseError, match=r"Locked cannot be sent to worker processes \(.*lock.*jobs=0"):
        run_tasks(draw, tasks(1), folder=tmp_path, context={}, extensions=[Locked], install=install)


@pytest.mark.parametrize("where", ["import", "install"])
def test_worker_processes_that_hang_at_their_start_end_in_an_error(tmp_path, monkeypatch, where):
    module = tmp_path / "slow_import.py"
    module.write_text(
        "import os, time\n"
        "time.sleep(60 if os.environ.get('HANG') else 0)\n"
        "def work(context, coordinates):\n"
        "    return {}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import slow_import

    monkeypatch.setattr(engines, "START_S", 1.0)
    monkeypatch.setenv("HANG", "1" if where == "import" else "")
    extensions = [Path] if where == "install" else []
    start = time.monotonic()
    with pytest.raises(NeurofuseError, match=r"cannot start \(not ready within 1 s\)"):
        run_tasks(
            slow_import.work,
            tasks(2),
            folder=tmp_path / "out",
            context={"large": "x" * 10**7},
            extensions=extensions,
            install=install_forever,
        )
    assert time.monotonic() - start < 60
