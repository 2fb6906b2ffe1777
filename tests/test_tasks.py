"""The same results on one process, on two and on Dask, whatever is killed on the way. Toys stand for decoders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tqdm.auto import tqdm

from neurofuse.recording import NeurofuseError
from neurofuse.study import tasks as engines
from neurofuse.study.tasks import RETRIES, Task, read_record, run_tasks

ROOT = Path(__file__).parent.parent


def draw(context, coordinates):
    """A pure function of its coordinates, with a trap for every way to go wrong."""
    marks = context.get("marks")
    if context.get("bar"):
        tqdm([], disable=True).close()
    if coordinates["k"] == context.get("raise_at"):
        raise NeurofuseError("this one\ncannot be done.")
    if coordinates["k"] == context.get("not_json_at"):
        return {"value": float("nan")}
    if coordinates["k"] == context.get("poison"):
        with open(Path(marks) / "poison", "a") as file:
            file.write("x")
        time.sleep(context.get("poison_s", 0.0))
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


def test_one_process_two_and_dask_say_the_same(tmp_path):
    from distributed import Client, LocalCluster

    here = run_tasks(draw, tasks(), folder=tmp_path / "0", context={"seed": 5}, jobs=0)
    one = run_tasks(draw, tasks(), folder=tmp_path / "1", context={"seed": 5}, jobs=1)
    two = run_tasks(draw, tasks()[::-1], folder=tmp_path / "2", context={"seed": 5}, jobs=2)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
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


def test_poison_is_quarantined_and_the_rest_finish(tmp_path):
    context = {"seed": 1, "marks": str(tmp_path), "poison": 2}
    records = run_tasks(draw, tasks(), folder=tmp_path / "out", context=context, jobs=2)
    assert records["task2"].status == "quarantined"
    assert records["task2"].message == "its worker died at each of 3 tries (SIGKILL)"
    assert (tmp_path / "poison").read_text() == "x" * (RETRIES + 1)
    assert {k for k, r in records.items() if r.status == "ok"} == {f"task{k}" for k in (0, 1, 3, 4, 5)}
    # Whoever shared the machine with it was not run twice, nor accused.
    assert all((tmp_path / f"ran-{k}").read_text() == "x" for k in (0, 1, 3, 4, 5))
    # Cured, it alone is run.
    cured = context | {"poison": None}
    again = run_tasks(draw, tasks(), folder=tmp_path / "out", context=cured, jobs=1)
    assert {r.status for r in again.values()} == {"ok"}
    assert all((tmp_path / f"ran-{k}").read_text() == "x" for k in range(6))


def test_what_raises_or_is_no_json_has_failed_once_and_says_why(tmp_path):
    context = {"seed": 1, "raise_at": 0, "not_json_at": 1}
    records = run_tasks(draw, tasks(3), folder=tmp_path, context=context, jobs=0)
    assert (records["task0"].status, records["task0"].message) == ("failed", "this one cannot be done.")
    assert records["task1"].status == "failed"
    assert "JSON" in records["task1"].message
    assert records["task2"].status == "ok"


def test_half_a_file_is_no_result_and_leftovers_go(tmp_path):
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


def test_a_study_killed_in_the_middle_goes_on_to_the_same_files(tmp_path):
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
    # The workers leave with it; nobody is left to write.
    time.sleep(0.5)
    begun = {f.name for f in marks.iterdir()}
    time.sleep(0.5)
    assert {f.name for f in marks.iterdir()} == begun
    there = {f.name for f in out.glob("task*.json")}
    assert 4 <= len(there) < 20
    assert len(begun) - len(there) <= 2, "more than the running tasks were lost"
    context = {"seed": 1, "marks": str(marks)}
    run_tasks(draw, tasks(20), folder=out, context=context, jobs=1)
    run_tasks(draw, tasks(20), folder=tmp_path / "undisturbed", context={"seed": 1}, jobs=0)
    files = [{f.name: f.read_bytes() for f in folder.iterdir()} for folder in (out, tmp_path / "undisturbed")]
    assert files[0] == files[1]
    # What was there was not run again.
    again = {f"ran-{json.loads((out / name).read_text())['coordinates']['k']}" for name in there}
    assert all((marks / name).read_text() == "x" for name in again)


@pytest.mark.parametrize("shared", [0, 10**6])
def test_a_script_that_guards_nothing_is_told_so(tmp_path, shared):
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
    """The bar of a training makes one, unless told not to, which is warned of at the end."""
    script = write_script(
        tmp_path / "bars.py", marks=tmp_path, out=tmp_path / "out", n=3, bar=True, poison=1, poison_s=0.2
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "poison").exists()
    assert done.stderr == ""


def test_a_scheduler_that_does_not_answer_is_refused(tmp_path):
    with pytest.raises(NeurofuseError, match=r"there is no Dask scheduler at 'nowhere'.*tcp://HOST:8786"):
        run_tasks(draw, tasks(1), folder=tmp_path, context={"seed": 1}, scheduler="nowhere")
    with pytest.raises(NeurofuseError, match="zero or more, got -1"):
        run_tasks(draw, tasks(1), folder=tmp_path, context={"seed": 1}, jobs=-1)


@pytest.mark.slow
def test_a_dask_worker_that_dies_is_replaced_and_poison_set_aside(tmp_path):
    import dask
    from distributed import Client, LocalCluster

    # A worker that dies in the moment it registers counts as one that cannot start, and Dask gives it up.
    context = {"seed": 1, "marks": str(tmp_path), "poison": 2, "poison_s": 1.0}
    quiet = {"distributed.scheduler.allowed-failures": RETRIES, "logging.distributed": "critical"}
    with (
        dask.config.set(quiet),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        records = run_tasks(draw, tasks(4), folder=tmp_path / "out", context=context, scheduler=client)
    assert records["task2"].status == "quarantined"
    assert {k for k, r in records.items() if r.status == "ok"} == {"task0", "task1", "task3"}
