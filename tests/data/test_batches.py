import pytest
import torch

from diffusion.data import Batches
from diffusion.data.batches import fits


def numbered(n):
    """Images whose left column holds their index; the other pixels are 255."""
    images = torch.full((n, 1, 2, 2), 255, dtype=torch.uint8)
    images[:, 0, :, 0] = torch.arange(n, dtype=torch.uint8)[:, None]
    return images, torch.arange(n)


def order(loader):
    return torch.cat([y for _, y in loader]).tolist()


def test_scaling_round_trips_all_256_values():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    ((x0, _),) = Batches(images, torch.zeros(1), batch_size=1)
    assert x0.dtype == torch.float32 and x0.min() == -1 and x0.max() == 1
    assert torch.equal(((x0 + 1) * 127.5 + 0.5).floor().to(torch.uint8), images)


def test_order_is_a_function_of_seed_and_epoch():
    a, b = (Batches(*numbered(50), batch_size=10, shuffle=True, seed=3) for _ in range(2))
    c = Batches(*numbered(50), batch_size=10, shuffle=True, seed=4)
    epochs = []
    for epoch in range(3):
        for loader in (a, b, c):
            loader.sampler.set_epoch(epoch)
        epochs.append(order(a))
        assert epochs[-1] == order(b) == order(a) != order(c)
        assert sorted(epochs[-1]) == list(range(50))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_flips_mirror_half_the_images_and_only_those_allowed():
    images, y = numbered(200)
    allowed = torch.arange(200) < 150
    loader = Batches(images, y, batch_size=7, shuffle=True, flip=allowed, seed=1)
    flipped = torch.zeros(200, dtype=torch.bool)
    for x0, y_ in loader:
        byte = ((x0 + 1) * 127.5).round()
        right, left = byte[:, 0, 0, 1] == y_, byte[:, 0, 0, 0] == y_
        assert (left ^ right).all()  # y stays with its image, mirrored or not
        flipped[y_] = right
    assert 55 <= flipped[:150].sum() <= 95  # 75 +- 3.3 standard deviations
    assert not flipped[150:].any()
    loader.set_epoch(1)
    assert not torch.equal(loader.plan(0)[1], loader.plan(1)[1])
    assert loader.plan(0)[1][loader.plan(0)[0].argsort()].equal(flipped)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_shares_are_disjoint_and_equal(world):
    loaders = [
        Batches(*numbered(50), batch_size=8, shuffle=True, drop_last=True, rank=r, world=world) for r in range(world)
    ]
    shares = [order(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [50 // world // 8] * world
    assert [len(share) for share in shares] == [50 // world // 8 * 8] * world
    assert len({i for share in shares for i in share}) == sum(map(len, shares))
    whole = loaders[0].plan(0)[0].tolist() if world == 1 else None
    assert whole is None or shares[0] == whole[:48]


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_drops_nothing_and_keeps_the_order(world):
    loaders = [Batches(*numbered(50), batch_size=8, rank=r, world=world) for r in range(world)]
    shares = [order(loader) for loader in loaders]
    assert shares == [list(range(r, 50, world)) for r in range(world)]
    assert [len(loader) for loader in loaders] == [sum(1 for _ in loader) for loader in loaders]


def test_a_set_smaller_than_the_batch_gives_one_batch():
    loader = Batches(*numbered(5), batch_size=128, shuffle=True, drop_last=True)
    assert len(loader) == 1 and sorted(order(loader)) == [0, 1, 2, 3, 4]
    assert len(Batches(*numbered(5), batch_size=128, drop_last=True, world=2)) == 1


def test_resume_within_an_epoch_and_at_its_end():
    whole = Batches(*numbered(40), batch_size=8, shuffle=True, drop_last=True)
    wanted = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        wanted += [y.tolist() for _, y in whole]
    for done in range(1, 15):  # 5 batches per epoch
        first, second = (Batches(*numbered(40), batch_size=8, shuffle=True, drop_last=True) for _ in range(2))
        seen = []
        for epoch in range(3):
            first.set_epoch(epoch)
            for _, y in first:
                seen.append(y.tolist())
                if len(seen) == done:
                    break
            if len(seen) == done:
                break
        state = first.state_dict()
        assert state == {"batches": done % 5, "epoch": done // 5, "images": done % 5 * 8}
        second.load_state_dict(state)
        assert second.state_dict() == state
        for epoch in range(done // 5, 3):
            second.set_epoch(epoch)
            seen += [y.tolist() for _, y in second]
        assert seen == wanted, done


@pytest.mark.parametrize(
    ("before", "after", "batch_size"), [(2, 1, 8), (1, 2, 8), (2, 1, 16), (3, 2, 8), (1, 4, 5), (1, 1, 3)]
)
def test_batches_resume_with_another_number_of_processes(before, after, batch_size):
    """The images before and after the change are together the epoch's order; the next epoch is complete."""
    options = {"shuffle": True, "drop_last": True, "seed": 5}
    order_of = Batches(*numbered(100), batch_size=1, **options).plan(0)[0].tolist()
    first = [Batches(*numbered(100), batch_size=8, rank=r, world=before, **options) for r in range(before)]
    seen = []
    for done, batches in enumerate(zip(*first, strict=True), 1):
        seen += torch.stack([y for _, y in batches], 1).flatten().tolist()
        if done == 2:
            break
    assert seen == order_of[: 16 * before]
    rest = [Batches(*numbered(100), batch_size=batch_size, rank=r, world=after, **options) for r in range(after)]
    for loader in rest:
        assert loader.load_state_dict(first[0].state_dict()) is None
    state = rest[0].state_dict()
    assert state["images"] == 16 * before
    left = (100 - 16 * before) // after // batch_size
    assert state["batches"] == len(rest[0]) - left  # `left` complete batches remain
    for i, batches in enumerate(zip(*rest, strict=True), state["batches"]):
        assert all(torch.equal(y, loader.indices(0, i)) for (_, y), loader in zip(batches, rest, strict=True))
        seen += torch.stack([y for _, y in batches], 1).flatten().tolist()
    assert seen == order_of[: len(seen)] and len(seen) == 16 * before + left * after * batch_size
    rest[0].set_epoch(1)
    assert len(order(rest[0])) == 100 // after // batch_size * batch_size


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 2, "world": 2}, "rank 2"),
        ({"seed": -1}, "seed -1"),
        ({"world": 9, "drop_last": True}, "8 images for 9"),
    ],
)
def test_batches_refuse_bad_arguments(change, words):
    with pytest.raises(ValueError, match=words):
        Batches(*numbered(8), **change)


def test_batches_refuse_bad_tensors():
    images, y = numbered(8)
    with pytest.raises(ValueError, match="uint8"):
        Batches(images.float(), y)
    with pytest.raises(ValueError, match="8 images but 7 targets"):
        Batches(images, y[:7])


@pytest.mark.parametrize(("free", "wanted"), [(8001, True), (8000, False)])
def test_images_of_half_the_gpus_memory_stay_on_the_host(monkeypatch, free, wanted):
    images = torch.zeros(1000, 1, 2, 2, dtype=torch.uint8)  # 4,000 bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    assert fits(images, torch.device("cuda")) is wanted and fits(images, torch.device("cpu"))


def test_states_of_older_checkpoints_without_images_are_loadable():
    old, new = (Batches(*numbered(40), batch_size=8, shuffle=True, drop_last=True, seed=2) for _ in range(2))
    old.load_state_dict({"epoch": 1, "batches": 2})
    new.load_state_dict({"epoch": 1, "batches": 2, "images": 16})
    assert old.state_dict() == new.state_dict() == {"epoch": 1, "batches": 2, "images": 16}
    assert order(old) == order(new) and len(order(new)) == 24
