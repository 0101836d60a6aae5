from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from affsup_cli.recipe import load_recipe
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runtime.stop import StopRequest
from affsup_cli.sweeps import schedule
from affsup_cli.sweeps.messages import Event, RunEnded, RunRequest
from affsup_cli.sweeps.plan import PlannedRun
from affsup_cli.sweeps.schedule import SweepObserver, run_planned


class Machine:
    """A launcher without processes: each run ends the next time that events are asked for, as `fates` say."""

    def __init__(self, room: int, fates: dict[str, RunEnded] | None = None) -> None:
        self.room = room
        self.fates = fates or {}
        self.running: dict[int, str] = {}
        self.story: list[str] = []
        self.orders: list[RunRequest] = []
        self.rounds = 0

    def has_room(self) -> bool:
        return len(self.running) < self.room

    def start(self, number: int, order: RunRequest) -> str:
        self.running[number] = order.folder.name
        self.orders.append(order)
        self.story.append(f"+{order.folder.name}")
        return "here"

    def events(self, seconds: float) -> Iterator[tuple[int, Event]]:
        self.rounds += 1
        assert self.rounds < 100, f"it goes on for ever: {self.story}"
        for number, name in list(self.running.items())[:1]:
            del self.running[number]
            self.story.append(f"-{name}")
            yield number, self.fates.get(name, RunEnded("finished"))

    def stop(self) -> None:
        self.fates = dict.fromkeys(self.running.values(), RunEnded("stopped"))

    def close(self) -> None:
        raise AssertionError("whoever made it closes it")


def planned(name: str, needs: PlannedRun | None = None, state: str = "missing") -> PlannedRun:
    return PlannedRun((name,), load_recipe("minibatch"), None, RunFolder(Path("runs") / name), state, needs, 0)  # type: ignore[arg-type]


def run(
    planned_runs: list[PlannedRun], machine: Machine, observer: SweepObserver | None = None
) -> dict[str, tuple[str, str]]:
    outcomes = run_planned(planned_runs, Path("data"), machine, observer or SweepObserver(), StopRequest())
    return {planned.cells[0]: (outcome.how, outcome.reason) for planned, outcome in outcomes.items()}


def test_as_many_run_at_once_as_there_is_room_for_and_the_next_begins_when_one_ends() -> None:
    machine = Machine(room=2)
    outcomes = run([planned(name) for name in "abc"], machine)
    assert machine.story == ["+a", "+b", "-a", "+c", "-b", "-c"]
    assert set(outcomes.values()) == {("finished", "")}


def test_a_step_waits_for_the_one_that_it_needs_and_is_given_its_folder() -> None:
    machine = Machine(room=3)
    network = planned("network")
    run([network, planned("scene", network), planned("other")], machine)
    assert machine.story == ["+network", "+other", "-network", "+scene", "-other", "-scene"]
    assert [order.pretrained for order in machine.orders] == [None, None, Path("runs/network")]


def test_what_it_needs_may_have_been_finished_before() -> None:
    machine = Machine(room=1)
    assert run([planned("scene", planned("network", state="finished"))], machine) == {"scene": ("finished", "")}


def test_a_failure_stops_only_those_that_need_what_failed() -> None:
    machine = Machine(room=1, fates={"network": RunEnded("failed", "diverged")})
    network = planned("network")
    scene = planned("scene", network)
    assert run([network, scene, planned("third", scene), planned("other")], machine) == {
        "network": ("failed", "diverged"),
        "scene": ("not run", "needs network seed 0"),
        "third": ("not run", "needs scene seed 0"),
        "other": ("finished", ""),
    }
    assert machine.story == ["+network", "-network", "+other", "-other"]


def test_a_step_whose_folder_is_damaged_is_refused_by_name_and_the_others_run() -> None:
    outcomes = run([planned("broken", state="damaged"), planned("other")], Machine(room=1))
    how, reason = outcomes["broken"]
    assert how == "failed"
    assert reason.startswith("runs/broken is damaged: `affsup check runs/broken`")
    assert outcomes["other"] == ("finished", "")


def test_after_a_stop_nothing_begins_and_all_that_run_are_told() -> None:
    stop = StopRequest()

    class Impatient(SweepObserver):
        def ended(self, planned: PlannedRun, outcome: object) -> None:
            stop.requested = True

    machine = Machine(room=2)
    planned_runs = [planned(name) for name in "abcd"]
    outcomes = run_planned(planned_runs, Path("data"), machine, Impatient(), stop)
    assert machine.story == ["+a", "+b", "-a", "-b"]
    assert {planned.cells[0]: outcome.how for planned, outcome in outcomes.items()} == {"a": "finished", "b": "stopped"}


@pytest.mark.parametrize("room", [1, 2])
def test_a_watcher_hears_of_every_end(room: int) -> None:
    heard = []

    class Listener(SweepObserver):
        def started(self, planned: PlannedRun, where: str) -> None:
            heard.append(f"+{planned.cells[0]} {where}")

        def ended(self, planned: PlannedRun, outcome: object) -> None:
            heard.append(f"-{planned.cells[0]}")

    run([planned("a"), planned("b", state="damaged")], Machine(room), Listener())
    assert heard == ["-b", "+a here", "-a"]


class Elsewhere(SweepObserver):
    """Hears which runs another process runs, and does something each time."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.heard: list[str] = []
        self.then = then

    def run_elsewhere(self, planned: PlannedRun) -> None:
        self.heard.append(planned.cells[0])
        self.then()


@pytest.mark.parametrize("finishes", [True, False])
def test_what_another_process_runs_is_waited_for_and_done_here_only_if_it_is_let_go_unfinished(
    finishes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schedule, "AGAIN_SECONDS", 0.0)
    network = planned("network")
    with ExitStack() as held:
        held.enter_context(network.folder.lock())

        def then() -> None:
            if len(observer.heard) == 3:
                if finishes:
                    network.folder.write_result({"kind": "train"})
                held.close()

        observer, machine = Elsewhere(then), Machine(room=2)
        outcomes = run([network, planned("scene", network), planned("free")], machine, observer)
    assert observer.heard == ["network"] * 3
    assert machine.story == ["+free", "-free", *([] if finishes else ["+network", "-network"]), "+scene", "-scene"]
    assert outcomes == dict.fromkeys(("network", "scene", "free"), ("finished", ""))


def test_a_run_that_another_process_begins_at_the_same_moment_waits_with_what_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule, "AGAIN_SECONDS", 0.0)
    machine = Machine(room=1, fates={"network": RunEnded("busy")})
    observer = Elsewhere(machine.fates.clear)
    network = planned("network")
    outcomes = run([network, planned("scene", network)], machine, observer)
    assert observer.heard == ["network"]
    assert machine.story == ["+network", "-network", "+network", "-network", "+scene", "-scene"]
    assert {how for how, _ in outcomes.values()} == {"finished"}


def test_a_run_of_another_process_is_left_alone_for_a_while_and_a_stop_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule, "AGAIN_SECONDS", float("inf"))
    stop = StopRequest()
    machine, observer = Machine(room=1, fates={"a": RunEnded("busy")}), Elsewhere()

    def tick() -> None:
        stop.requested = machine.rounds == 20

    monkeypatch.setattr(observer, "ticked", tick)
    assert run_planned([planned("a")], Path("data"), machine, observer, stop) == {}
    assert machine.story == ["+a", "-a"]
    assert observer.heard == ["a"]


def test_a_folder_that_cannot_be_locked_is_left_to_whoever_runs_it_to_complain_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = planned("a")
    (one.folder.path / ".lock").mkdir(parents=True)
    assert run([one], Machine(room=1, fates={"a": RunEnded("failed", "is a directory")}))["a"][0] == "failed"
