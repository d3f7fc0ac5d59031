"""The number of threads: as requested, or the one with the shortest steps on a simulated clock."""

import pytest
import torch

from diffusion.nets import threads
from diffusion.nets.threads import counts, take, threads_restored, wanted


@pytest.fixture(autouse=True)
def unchanged():
    with threads_restored():
        yield


class Clock:
    """A step takes 1 / threads seconds, and each thread more than `free` a further one, waiting for a core."""

    def __init__(self, free):
        self.free, self.now, self.order = free, 0.0, []

    def step(self):
        number = torch.get_num_threads()
        self.order.append(number)
        self.now += 1 / number + max(0, number - self.free)

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("free", "best"), [(8, 8), (2, 2), (1, 1), (3, 2)])
def test_the_number_with_the_shortest_steps_is_taken(free, best):
    clock = Clock(free)
    said = take("fastest", clock.step, most=8, clock=clock)
    assert torch.get_num_threads() == best
    assert said.startswith(f"threads: {best}, the fastest here (1e+03 ms with 1, ")
    assert clock.order == [1, 2, 4, 8] * (1 + threads.ROUNDS)  # in turn, the first of each is a warm-up


def test_a_number_is_set_without_a_measurement():
    def never():
        raise AssertionError("nothing is measured unless asked for")

    before = torch.get_num_threads()
    for asked, found in ((None, before), ("", before), ("3", 3), (2, 2)):
        assert take(asked, never) == "" and torch.get_num_threads() == found
    assert take("fastest", never, "this is a test") == "threads: 2, not measured: this is a test"
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5", 0.5, "²"])
def test_anything_else_is_refused(asked):
    with pytest.raises(ValueError, match=r"wanted a number from 1 on, or fastest; got"):
        wanted(asked)


def test_powers_of_two_and_all_cores_are_measured():
    assert [counts(n) for n in (1, 2, 4, 6, 64)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8, 16, 32, 64]]


def test_the_number_is_restored_also_after_an_error():
    before = torch.get_num_threads()

    @threads_restored()
    def fails():
        torch.set_num_threads(before + 1)
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.get_num_threads() == before
