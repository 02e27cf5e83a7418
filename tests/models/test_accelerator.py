"""A full device: halved batches, then the CPU; work that nobody wants any more ends between two blocks."""

import logging

import pytest
import torch
from torch import Tensor, nn

from backend.core import interruption
from backend.core.interruption import InterruptedWorkError, interruptible
from backend.errors import ConfigurationError
from backend.models.accelerator import OnDevice, choose_device, make_interruptible


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
    answers = OnDevice(network, torch.device("cpu")).run(_items(7), lambda net, items: net(torch.stack(items)))
    assert [float(answer.mean()) for answer in answers] == [0, 2, 4, 6, 8, 10, 12]
    assert network.sizes == sizes


def test_what_does_not_fit_at_all_runs_on_the_cpu_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    network = Doubling(0)
    with caplog.at_level(logging.WARNING):
        answers = OnDevice(network, torch.device("cpu")).run(_items(2), lambda net, items: net(torch.stack(items)))
    assert [float(answer.mean()) for answer in answers] == [0, 2]
    assert "runs on the CPU" in caplog.text


def test_benchmarks_are_told_of_each_pass_and_of_nothing_around_it() -> None:
    on_device = OnDevice(Doubling(100), torch.device("cpu"))
    told: list[float] = []
    on_device.on_forward = told.append
    is_in_pass: list[bool] = []

    def double(network: nn.Module, items: list[Tensor]) -> Tensor:
        is_in_pass.append(len(told) == len(is_in_pass))
        answer: Tensor = network(torch.stack(items))
        return answer

    answers = on_device.run(_items(5), double, at_once=2)
    assert [float(answer.mean()) for answer in answers] == [0, 2, 4, 6, 8]
    assert is_in_pass == [True] * 3
    assert len(told) == 3
    assert all(seconds > 0 for seconds in told)
    assert on_device.timed(torch.device("cpu"), lambda: "answer") == "answer"
    assert len(told) == 4


def test_other_errors_are_not_hidden() -> None:
    def fail(network: nn.Module, items: list[Tensor]) -> Tensor:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        OnDevice(Doubling(9), torch.device("cpu")).run(_items(2), fail)


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
    make_interruptible(network)
    with pytest.raises(InterruptedWorkError), interruptible(lambda: len(done) >= 3):
        network(torch.zeros(1))
    assert len(done) == 3
    network(torch.zeros(1))  # without a condition it runs through
    assert len(done) == 9


def test_conditions_nest_and_end_with_their_block() -> None:
    with interruptible(lambda: False):
        with interruptible(lambda: True), pytest.raises(InterruptedWorkError):
            interruption.check()
        interruption.check()
    with interruptible(lambda: True), interruptible(lambda: False), pytest.raises(InterruptedWorkError):
        interruption.check()
    interruption.check()
