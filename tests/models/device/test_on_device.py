"""A full device: halved batches, then the CPU; work that nobody wants any more ends between two blocks."""

import logging
import os

import pytest
import torch
from torch import Tensor, nn

from backend.core import cancellation
from backend.core.cancellation import CancelledWorkError, cancellable, shield
from backend.errors import ConfigurationError
from backend.models.device.on_device import DeviceRunner, make_cancellable
from backend.models.device.pinned_memory import Answer, Transfers
from backend.models.device.placement import choose_device, good_threads


class Doubling(nn.Module):
    """Doubles its input; out of memory with more than `room` items while it is the original, not the CPU copy."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.sizes: list[int] = []

    def __deepcopy__(self, memo: object) -> "Doubling":
        return Doubling(1000)

    def forward(self, batch: Tensor) -> Tensor:
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("full")
        return batch * 2


def _items(count: int) -> list[Tensor]:
    return [torch.full((1, 2, 2), float(number)) for number in range(count)]


@pytest.mark.parametrize(
    ("room", "sizes"), [(100, [7]), (4, [7, 4, 3]), (2, [7, 4, 2, 2, 2, 1]), (1, [7, 4, 2, *[1] * 7])]
)
def test_full_device_halves_the_batch(room: int, sizes: list[int]) -> None:
    network = Doubling(room)
    answers = DeviceRunner(network, torch.device("cpu")).run(_items(7), lambda net, batch: net(batch))
    assert [float(answer.mean()) for answer in answers] == [0, 2, 4, 6, 8, 10, 12]
    assert network.sizes == sizes


def test_what_does_not_fit_at_all_runs_on_the_cpu_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    network = Doubling(0)
    with caplog.at_level(logging.WARNING):
        answers = DeviceRunner(network, torch.device("cpu")).run(_items(2), lambda net, batch: net(batch))
    assert [float(answer.mean()) for answer in answers] == [0, 2]
    assert "runs on the CPU" in caplog.text


class NoticedTransfers(Transfers):
    """Plain memory; notes what is begun and what is waited for."""

    def __init__(self, events: list[str], **options: int) -> None:
        super().__init__(None, **options)
        self.events = events
        self.made: list[Tensor] = []

    def to_device(self, pinned: Tensor, device: torch.device) -> Tensor:
        return pinned.clone()

    def to_host(self, answer: Tensor) -> Answer:
        pinned = self._pinned(answer)
        number = sum(event.startswith("begun") for event in self.events)
        self.events.append(f"begun {number}")

        def wait() -> None:
            self.events.append(f"waited {number}")
            pinned.copy_(answer)

        return Answer(pinned, wait, is_pinned=True)

    def _new(self, like: Tensor) -> Tensor:
        self.made.append(torch.zeros(like.shape, dtype=like.dtype))
        return self.made[-1]


def _with_transfers(network: nn.Module, events: list[str], **options: int) -> tuple[DeviceRunner, NoticedTransfers]:
    transfers = NoticedTransfers(events, **options)
    return DeviceRunner(network, torch.device("cpu"), transfers=transfers), transfers


def _double(network: nn.Module, batch: Tensor) -> Tensor:
    answer: Tensor = network(batch)
    return answer


def test_all_passes_are_queued_before_one_is_waited_for() -> None:
    events: list[str] = []
    on_device, transfers = _with_transfers(Doubling(100), events)
    begun = on_device.run_async(_items(5), _double, at_once=2)
    also = on_device.run_async([item + 10 for item in _items(2)], _double)
    assert events == ["begun 0", "begun 1", "begun 2", "begun 3"]
    answers = begun()
    assert events[4:] == ["waited 0", "waited 1", "waited 2"]
    assert [float(answer.mean()) for answer in answers] == [0, 2, 4, 6, 8]
    assert [float(answer.mean()) for answer in also()] == [20, 22]
    # Memory that carried something is used again, and never by two at a time: what was answered stays.
    made = len(transfers.made)
    again = on_device.run([item + 20 for item in _items(5)], _double, at_once=2)
    assert [float(answer.mean()) for answer in again] == [40, 42, 44, 46, 48]
    assert [float(answer.mean()) for answer in answers] == [0, 2, 4, 6, 8]
    assert len(transfers.made) == made


def test_a_full_device_halves_what_is_queued_behind_other_passes() -> None:
    events: list[str] = []
    network = Doubling(100)
    on_device, _ = _with_transfers(network, events)

    def call(net: nn.Module, batch: Tensor) -> Tensor:
        network.room = 1 if events else 100
        return _double(net, batch)

    assert [float(answer.mean()) for answer in on_device.run(_items(6), call, at_once=3)] == [0, 2, 4, 6, 8, 10]
    assert network.sizes == [3, 3, 2, 1, 1, 1]


def test_memory_kept_for_transfers_is_bounded() -> None:
    item_bytes = 4 * 4
    on_device, transfers = _with_transfers(Doubling(100), [], most_bytes=10 * item_bytes)
    for side in (1, 2, 3, 4):
        items = [torch.full((1, 2, 2 * side), float(side))] * 3
        assert [float(one.mean()) for one in on_device.run(items, _double)] == [2.0 * side] * 3
        # Three inputs, and the answer of all three.
        assert transfers.kept_bytes == 6 * item_bytes if side == 1 else transfers.kept_bytes <= 10 * item_bytes


def test_benchmarks_are_told_of_each_pass_and_of_nothing_around_it() -> None:
    on_device = DeviceRunner(Doubling(100), torch.device("cpu"))
    told: list[float] = []
    on_device.on_forward = told.append
    is_in_pass: list[bool] = []

    def double(network: nn.Module, batch: Tensor) -> Tensor:
        is_in_pass.append(len(told) == len(is_in_pass))
        answer: Tensor = network(batch)
        return answer

    answers = on_device.run(_items(5), double, at_once=2)
    assert [float(answer.mean()) for answer in answers] == [0, 2, 4, 6, 8]
    assert is_in_pass == [True] * 3
    assert len(told) == 3
    assert all(seconds > 0 for seconds in told)
    assert on_device.timed(torch.device("cpu"), lambda: "answer") == "answer"
    assert len(told) == 4


def test_other_errors_are_not_hidden() -> None:
    def fail(network: nn.Module, batch: Tensor) -> Tensor:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        DeviceRunner(Doubling(9), torch.device("cpu")).run(_items(2), fail)


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    for wanted in ("cuda:99", "tpu-v9", "meta"):
        with pytest.raises(ConfigurationError, match=f"got {wanted}"):
            choose_device(wanted)


def test_unwanted_work_ends_between_blocks() -> None:
    done: list[int] = []

    class Block(nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            done.append(1)
            return batch

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block() for _ in range(6)])

        def forward(self, batch: Tensor) -> Tensor:
            for block in self.blocks:
                batch = block(batch)
            return batch

    network = Network()
    make_cancellable(network)
    with pytest.raises(CancelledWorkError), cancellable(lambda: len(done) >= 3):
        network(torch.zeros(1))
    assert len(done) == 3
    network(torch.zeros(1))  # without a condition it runs through
    assert len(done) == 9


def test_conditions_nest_and_end_with_their_block() -> None:
    with cancellable(lambda: False):
        with cancellable(lambda: True), pytest.raises(CancelledWorkError):
            cancellation.check()
        cancellation.check()
    with cancellable(lambda: True):
        with shield():
            cancellation.check()
        with pytest.raises(CancelledWorkError):
            cancellation.check()
    with cancellable(lambda: True), cancellable(lambda: False), pytest.raises(CancelledWorkError):
        cancellation.check()
    cancellation.check()


def test_threads_of_a_call() -> None:
    cores = len(os.sched_getaffinity(0))
    assert good_threads(torch.device("cpu")) == 0
    assert good_threads(torch.device("cpu"), 2) == max(1, cores // 2)
    assert good_threads(torch.device("cpu"), 10 * cores) == 1
    assert good_threads(torch.device("cuda", 0)) == good_threads(torch.device("cuda", 0), 2) == 1
