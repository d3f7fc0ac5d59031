import torch

from diffusion.noise import Linear, Stratified, Uniform
from diffusion.noise.draws import FixedDraws, ImageDraws, StepDraws


def test_step_noise_is_a_function_of_seed_step_and_rank():
    x = torch.zeros(4, 3, 8, 8)
    make = lambda *key: StepDraws(*key).normal(x)  # noqa: E731
    first = make(0, 5, 0)
    assert torch.equal(first, make(0, 5, 0))
    for other in ((1, 5, 0), (0, 6, 0), (0, 5, 1), (5, 0, 0)):
        assert abs(torch.corrcoef(torch.stack([first.flatten(), make(*other).flatten()]))[0, 1]) < 0.15
    assert first.dtype == torch.float32
    assert StepDraws(0, 5, 0).normal(x.bfloat16()).dtype == torch.float32  # noise is never drawn in low precision


def test_step_uniform_and_normal_draws_are_independent():
    a, b = StepDraws(0, 1, 0), StepDraws(0, 1, 0)
    a.uniform(100)
    assert torch.equal(a.normal(torch.zeros(10)), b.normal(torch.zeros(10)))
    assert a.uniform(3).dtype == torch.float64


def test_image_noise_does_not_depend_on_the_batch():
    x = torch.empty(6, 1, 8, 8)
    whole, parts = ImageDraws(3, range(6)), (ImageDraws(3, range(0, 2)), ImageDraws(3, range(2, 6)))
    for _ in range(3):  # several steps
        assert torch.equal(whole(x), torch.cat([parts[0](x[:2]), parts[1](x[2:])]))


def test_image_noise_is_normal_and_independent():
    z = ImageDraws(0, range(400))(torch.empty(400, 1, 16, 16)).flatten(1)
    assert abs(float(z.mean())) < 0.01 and abs(float(z.std()) - 1) < 0.01
    assert float((torch.corrcoef(z) - torch.eye(400)).abs().max()) < 0.35  # 5.5 / sqrt(256)


def test_validation_times_are_spread_and_fixed():
    draws = FixedDraws(0, torch.arange(1000))
    u = draws.uniform(1000).sort().values
    assert torch.equal(draws.uniform(1000), FixedDraws(0, torch.arange(1000)).uniform(1000))
    assert float((u - (torch.arange(1000) + 0.5) / 1000).abs().max()) < 0.002  # chance would give about .04
    assert torch.equal(
        draws.normal(torch.empty(1000, 2))[7], FixedDraws(0, torch.tensor([7])).normal(torch.empty(1, 2))[0]
    )


def test_stratified_times_take_one_from_each_slice_and_are_uniform():
    schedule, u = Linear(1000), torch.rand(200, 64, dtype=torch.float64)
    t = torch.stack([Stratified()(row, schedule) for row in u])
    assert ((t * 64).ceil() == torch.arange(1, 65)).double().mean() > 0.9  # except for rounding to the table
    assert abs(float(t.mean()) - 0.5005) < 1e-3
    assert t.mean(1).std() < 0.1 * torch.stack([Uniform()(row, schedule) for row in u]).mean(1).std()
