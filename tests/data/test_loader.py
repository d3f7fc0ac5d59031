"""`Loader`, torch's DataLoader in the order of `Batches`: resumed at any batch, in any number of processes."""

import pytest
import torch

from diffusion.data import Batches
from diffusion.data.loader import Loader

N, SEED = 1000, 5


class Numbers(torch.utils.data.Dataset):
    """Items that are their own index."""

    def __init__(self, n=N):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.tensor([float(i)]), i


def order_of(epoch, n=N):
    """The one order of an epoch, by `Batches`, whose order is that of all loaders."""
    images = torch.zeros(n, 1, 1, 1, dtype=torch.uint8)
    return Batches(images, torch.arange(n), shuffle=True, seed=SEED).plan(epoch)[0].tolist()


def group(world, batch_size=8, workers=0, n=N, state=None):
    """The loaders of all processes, resumed at a state."""
    loaders = [
        Loader(Numbers(n), batch_size, seed=SEED, rank=r, world=world, num_workers=workers) for r in range(world)
    ]
    for loader in loaders if state else ():
        loader.load_state_dict(state)
    return loaders


def together(loaders, steps=None):
    """What all processes see in their next steps, in the order's own sequence; and the state then."""
    seen, iterators = [], [iter(loader) for loader in loaders]
    step = 0
    while steps is None or step < steps:
        batches = [next(it, None) for it in iterators]
        if batches[0] is None:
            assert batches == [None] * len(loaders)
            break
        seen += torch.stack([y for _, y in batches], 1).flatten().tolist()
        step += 1
    states = [loader.state_dict() for loader in loaders]
    assert all(state == states[0] for state in states)
    return seen, states[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "worlds", [(1, 1, 1), (2, 2, 2), (2, 1, 2), (1, 2, 1), pytest.param((3, 2, 4), marks=pytest.mark.slow)]
)
def test_what_all_processes_see_of_an_epoch_is_a_prefix_of_its_order(worlds, workers):
    """13 batches in the first number of processes, 10 in the second, the rest in the third; then a whole epoch."""
    first, second, third = (lambda state=None, w=w: group(w, workers=workers, state=state) for w in worlds)
    seen, state = together(first(), 13)
    assert state == {"epoch": 0, "batches": 13, "images": 13 * 8 * worlds[0]}
    more, state = together(second(state), 10)
    assert state["epoch"] == 0 and state["images"] == len(seen + more)
    loaders = third(state)
    rest, state = together(loaders)
    seen += more + rest
    assert seen == order_of(0)[: len(seen)] and N - len(seen) < 8 * worlds[2]  # none twice, none left out
    assert state == {"epoch": 1, "batches": 0, "images": 0}
    for loader in loaders:
        loader.batch_sampler.sampler.set_epoch(1)
    whole = N // worlds[2] // 8 * 8 * worlds[2]
    assert together(loaders)[0] == order_of(1)[:whole]


@pytest.mark.parametrize("batch_size", [3, 16])
def test_another_batch_size_and_number_of_processes_at_every_step(batch_size):
    for done in range(1, 6):
        seen, state = together(group(1, n=50), done)
        rest, _ = together(group(2, batch_size, n=50, state=state))
        left = (50 - 8 * done) // 2 // batch_size * 2 * batch_size
        assert seen + rest == order_of(0, 50)[: 8 * done + left], done


def test_batches_and_loaders_have_one_order_and_one_state():
    images = torch.zeros(N, 1, 1, 1, dtype=torch.uint8)
    for rank in range(2):
        options = {"batch_size": 8, "shuffle": True, "drop_last": True, "seed": SEED, "rank": rank, "world": 2}
        batches, loader = Batches(images, torch.arange(N), **options), Loader(Numbers(), **options)
        for i, ((_, a), (_, b)) in enumerate(zip(batches, loader, strict=True)):
            assert torch.equal(a, b) and torch.equal(b, loader.indices(0, i))
            assert batches.state_dict() == loader.state_dict()


@pytest.mark.parametrize("state", [{"epoch": 1, "batches": 2}, {"epoch": 1, "batches": 2, "images": 16}])
def test_a_loader_resumes_after_the_batches_of_its_state(state):
    """Also of older checkpoints, whose states have no images."""
    (loader,) = group(1, n=40, state=state)
    assert loader.state_dict() == {"epoch": 1, "batches": 2, "images": 16}
    assert together([loader])[0] == order_of(1, 40)[16:]
    loader.batch_sampler.set_epoch(2)
    assert together([loader])[0] == order_of(2, 40)


def test_evaluation_drops_nothing_and_keeps_the_order():
    loaders = [Loader(Numbers(50), 8, shuffle=False, drop_last=False, rank=r, world=3) for r in range(3)]
    shares = [torch.cat([y for _, y in loader]).tolist() for loader in loaders]
    assert shares == [list(range(r, 50, 3)) for r in range(3)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "loader: wanted batch_size >= 1.*batch_size 0"),
        ({"rank": 2, "world": 2}, "rank 2, world 2"),
        ({"seed": -1}, "seed -1"),
        ({"batch_size": 30, "world": 2}, "50 items, fewer than one batch of 30 on 2 processes"),
    ],
)
def test_loaders_refuse_bad_arguments(change, words):
    with pytest.raises(ValueError, match=words):
        Loader(Numbers(50), **change)
