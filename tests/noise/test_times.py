import pytest
import torch

from diffusion.noise import VE, VP, Karras, Linear, LogitNormal, LogNormal, LossAware, Uniform

U = (torch.arange(20000).double() + 0.5) / 20000


def test_log_normal_has_edms_mean_and_spread():
    log_ratio = -Karras().level(LogNormal()(U, Karras())).log_snr / 2
    assert float(log_ratio.mean()) == pytest.approx(-1.2, abs=0.01) and float(log_ratio.std()) == pytest.approx(
        1.2, abs=0.02
    )


def test_logit_normal_times_are_centred():
    t = LogitNormal()(U, VE())
    assert float(t.median()) == pytest.approx(0.5, abs=1e-3)
    assert float((t / (1 - t)).log().std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("schedule", [Linear(1000), VP(), Linear(300)])
def test_loss_aware_is_unbiased_and_samples_by_the_root_mean_square(schedule):
    """The corrected mean of any function of t is its plain mean; hard bins are drawn more often."""
    times = LossAware(bins=50, history=5)
    first = times(U, schedule)
    assert torch.equal(first, Uniform()(U, schedule)) or (first - Uniform()(U, schedule)).abs().max() < 1e-9
    hard = lambda t: 1 + 20 * t**3  # noqa: E731
    for _ in range(5):
        times.observe(first, hard(first), schedule)
    t = times(U, schedule)
    assert float((t > 0.8).double().mean()) > 0.4
    p = times.probabilities()
    assert float(p.sum()) == pytest.approx(1) and float(p[-1] / p[0]) == pytest.approx(20.4, rel=0.1)
    for g in (hard, torch.sin, lambda t: (t > 0.37).double()):
        corrected = (times.correction(t, schedule) * g(t)).mean()
        assert float(corrected) == pytest.approx(float(g(Uniform()(U, schedule)).mean()), rel=5e-3)


def test_loss_aware_state_survives_a_checkpoint():
    times, again = LossAware(10, 2), LossAware(10, 2)
    times.observe(U[::7], U[::7], VP())
    again.load_state_dict(times.state_dict())
    assert torch.equal(times.probabilities(), again.probabilities())
    assert not torch.equal(times.probabilities(), LossAware(10, 2).probabilities())


@pytest.mark.parametrize("bad", [{"bins": 0}, {"history": 0}, {"floor": 0}])
def test_loss_aware_rejects_invalid_settings(bad):
    with pytest.raises(ValueError, match="LossAware"):
        LossAware(**bad)
