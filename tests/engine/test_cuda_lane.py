"""The lane of a GPU, with events that the test lets pass."""

from __future__ import annotations

import threading

import pytest

from baton.engine.cuda.lane import StreamLane


class Stream:
    """Events pass when the test says so, in order."""

    def __init__(self) -> None:
        self.events: list[threading.Event] = []

    def record(self):
        event = threading.Event()
        self.events.append(event)

        class Recorded:
            def synchronize(self) -> None:
                assert event.wait(10), "an event that never passes"

        return Recorded()


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def lane(stream):
    made = StreamLane(stream.record)
    yield made
    for event in stream.events:
        event.set()
    made.close()


def test_a_layer_is_told_when_the_device_has_written_it(stream, lane) -> None:
    told: list[int] = []
    came = threading.Event()

    def tell(layer: int) -> None:
        told.append(layer)
        came.set()

    launched = lane.when_done(tell)
    step = lane.start(lambda: [launched(0), launched(1)] and "result")
    assert not came.wait(0.05) and told == []
    stream.events[0].set()
    assert came.wait(10) and told == [0]
    stream.events[2].set()  # the step's end; the second layer's event passes before it on a device
    stream.events[1].set()
    assert step.result() == "result" and told == [0, 1]


def test_the_result_waits_for_the_end_of_the_step(stream, lane) -> None:
    step = lane.start(lambda: 7)
    done = threading.Event()
    got: list[int] = []
    waiter = threading.Thread(target=lambda: (got.append(step.result()), done.set()))
    waiter.start()
    assert not done.wait(0.05)
    stream.events[0].set()
    waiter.join(10)
    assert got == [7]


def test_an_error_is_raised_when_what_was_launched_before_it_has_ended(stream, lane) -> None:
    def work():
        raise ValueError("launching failed")

    step = lane.start(work)
    done = threading.Event()
    errors: list[Exception] = []

    def wait() -> None:
        try:
            step.result()
        except ValueError as error:
            errors.append(error)
        done.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not done.wait(0.05)
    stream.events[0].set()
    waiter.join(10)
    assert [str(error) for error in errors] == ["launching failed"]


def test_an_error_of_the_listener_fails_the_step(stream, lane) -> None:
    def tell(layer: int) -> None:
        raise RuntimeError(f"nobody listens for layer {layer}")

    launched = lane.when_done(tell)
    step = lane.start(lambda: launched(3))
    for event in stream.events:
        event.set()
    with pytest.raises(RuntimeError, match="layer 3"):
        step.result()
    assert lane.start(lambda: stream.events[-1].set() or 5) is not None
