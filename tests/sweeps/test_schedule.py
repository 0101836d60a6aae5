from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from affsup_cli.engine.run_folder import RunFolder
from affsup_cli.engine.stop import StopRequest
from affsup_cli.recipe import load_recipe
from affsup_cli.sweeps.messages import Ended, Event, Order
from affsup_cli.sweeps.plan import Step
from affsup_cli.sweeps.schedule import Watcher, run_steps


class Machine:
    """A launcher without processes: each run ends the next time that events are asked for, as `fates` say."""

    def __init__(self, room: int, fates: dict[str, Ended] | None = None) -> None:
        self.room = room
        self.fates = fates or {}
        self.running: dict[int, str] = {}
        self.story: list[str] = []
        self.orders: list[Order] = []

    def has_room(self) -> bool:
        return len(self.running) < self.room

    def start(self, number: int, order: Order) -> str:
        self.running[number] = order.folder.name
        self.orders.append(order)
        self.story.append(f"+{order.folder.name}")
        return "here"

    def events(self, seconds: float) -> Iterator[tuple[int, Event]]:
        for number, name in list(self.running.items())[:1]:
            del self.running[number]
            self.story.append(f"-{name}")
            yield number, self.fates.get(name, Ended("finished"))

    def stop(self) -> None:
        self.fates = dict.fromkeys(self.running.values(), Ended("stopped"))

    def close(self) -> None:
        raise AssertionError("whoever made it closes it")


def step(name: str, needs: Step | None = None, state: str = "missing") -> Step:
    return Step((name,), load_recipe("minibatch"), None, RunFolder(Path("runs") / name), state, needs, 0)  # type: ignore[arg-type]


def run(steps: list[Step], machine: Machine, watcher: Watcher | None = None) -> dict[str, tuple[str, str]]:
    outcomes = run_steps(steps, Path("data"), machine, watcher or Watcher(), StopRequest())
    return {step.cells[0]: (outcome.how, outcome.reason) for step, outcome in outcomes.items()}


def test_as_many_run_at_once_as_there_is_room_for_and_the_next_begins_when_one_ends() -> None:
    machine = Machine(room=2)
    outcomes = run([step(name) for name in "abc"], machine)
    assert machine.story == ["+a", "+b", "-a", "+c", "-b", "-c"]
    assert set(outcomes.values()) == {("finished", "")}


def test_a_step_waits_for_the_one_that_it_needs_and_is_given_its_folder() -> None:
    machine = Machine(room=3)
    network = step("network")
    run([network, step("scene", network), step("other")], machine)
    assert machine.story == ["+network", "+other", "-network", "+scene", "-other", "-scene"]
    assert [order.pretrained for order in machine.orders] == [None, None, Path("runs/network")]


def test_what_it_needs_may_have_been_finished_before() -> None:
    machine = Machine(room=1)
    assert run([step("scene", step("network", state="finished"))], machine) == {"scene": ("finished", "")}


def test_a_failure_stops_only_those_that_need_what_failed() -> None:
    machine = Machine(room=1, fates={"network": Ended("failed", "diverged")})
    network = step("network")
    scene = step("scene", network)
    assert run([network, scene, step("third", scene), step("other")], machine) == {
        "network": ("failed", "diverged"),
        "scene": ("not run", "needs network seed 0"),
        "third": ("not run", "needs scene seed 0"),
        "other": ("finished", ""),
    }
    assert machine.story == ["+network", "-network", "+other", "-other"]


def test_a_step_whose_folder_is_damaged_is_refused_by_name_and_the_others_run() -> None:
    outcomes = run([step("broken", state="damaged"), step("other")], Machine(room=1))
    how, reason = outcomes["broken"]
    assert how == "failed"
    assert reason.startswith("runs/broken is damaged: move it away")
    assert outcomes["other"] == ("finished", "")


def test_after_a_stop_nothing_begins_and_all_that_run_are_told() -> None:
    stop = StopRequest()

    class Impatient(Watcher):
        def ended(self, step: Step, outcome: object) -> None:
            stop.requested = True

    machine = Machine(room=2)
    steps = [step(name) for name in "abcd"]
    outcomes = run_steps(steps, Path("data"), machine, Impatient(), stop)
    assert machine.story == ["+a", "+b", "-a", "-b"]
    assert {step.cells[0]: outcome.how for step, outcome in outcomes.items()} == {"a": "finished", "b": "stopped"}


@pytest.mark.parametrize("room", [1, 2])
def test_a_watcher_hears_of_every_end(room: int) -> None:
    heard = []

    class Listener(Watcher):
        def started(self, step: Step, where: str) -> None:
            heard.append(f"+{step.cells[0]} {where}")

        def ended(self, step: Step, outcome: object) -> None:
            heard.append(f"-{step.cells[0]}")

    run([step("a"), step("b", state="damaged")], Machine(room), Listener())
    assert heard == ["-b", "+a here", "-a"]
