"""What the detector takes for an outlier in runs whose loss has short or long tails."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax import host
from tamiyo_jax.host._packed import settle
from tamiyo_jax.host._signals import make_signals

STEPS, SPIKE_EVERY, LATE = 1200, 10, 1000


def follow(losses: np.ndarray, gradients: np.ndarray) -> host.Signals:
    """The signals of a run with these losses and gradient norms, with a leading axis T."""

    def step(detector: host.Detector, row: tuple[jax.Array, jax.Array]) -> tuple:
        signals, after = host.detect(
            detector,
            loss=row[0],
            gradient_norm=row[1],
            update_ratio=jnp.float32(0),
            layer_gradient_norms=jnp.zeros(0, jnp.float32),
        )
        return after, signals

    rows = (jnp.asarray(losses, jnp.float32), jnp.asarray(gradients, jnp.float32))
    return jax.device_get(jax.lax.scan(step, host.new_detector(0), rows)[1])


def refused(losses: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Of such a run, bool[T]: the steps to be refused."""
    return follow(losses, gradients).refusable


def run_with_tails(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses about 1, every tenth so many spreads of 0.05 above; gradient norms about 1."""
    generator = np.random.default_rng(0)
    losses = 1 + 0.05 * generator.normal(size=STEPS)
    spikes = np.arange(STEPS) % SPIKE_EVERY == SPIKE_EVERY - 1
    losses[spikes] = 1 + 0.05 * sizes[spikes]
    return losses, 1 + 0.1 * generator.normal(size=STEPS)


GROWING = np.interp(np.arange(STEPS), [0, 300, LATE], [4.0, 7.0, 30.0])
LATE_ONLY = np.where(np.arange(STEPS) < LATE, 0.0, 30.0)


def test_tails_of_the_loss_that_grow_long_are_no_outliers():
    losses, gradients = run_with_tails(GROWING)
    assert losses.max() > 2.4
    assert not refused(losses, gradients).any()


def test_the_same_losses_are_outliers_in_a_run_whose_tails_are_short():
    losses, gradients = run_with_tails(LATE_ONLY)
    spikes = np.flatnonzero(losses > 2)
    assert np.flatnonzero(refused(losses, gradients)).tolist() == spikes.tolist()


def test_where_tails_are_long_a_loss_is_an_outlier_together_with_its_gradient():
    losses, gradients = run_with_tails(GROWING)
    gradients[1109] = 4.0
    assert np.flatnonzero(refused(losses, gradients)).tolist() == [1109]


def test_refused_spikes_do_not_make_the_tails_long():
    losses, gradients = run_with_tails(np.zeros(STEPS))
    garbage = slice(400, 430)
    losses[garbage], gradients[garbage] = 3.0, 4.0
    losses[500] = 3.0
    assert np.flatnonzero(refused(losses, gradients)).tolist() == [*range(400, 430), 500]


def spread_widely(level: float) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gradient norms about 1, spread by 30 %, at a level in steps 200 to 205."""
    generator = np.random.default_rng(1)
    losses, gradients = np.exp(0.3 * generator.normal(size=(2, STEPS)))
    losses[200:206], gradients[200:206] = level, level
    return losses, gradients


def test_the_third_high_loss_in_a_row_with_a_high_gradient_is_refused():
    losses, gradients = spread_widely(5.0)  # a z of about 6, below the limit for one step
    assert np.flatnonzero(refused(losses, gradients)).tolist() == [202, 203, 204, 205]


def test_high_losses_without_high_gradients_are_not_refused():
    losses, _ = spread_widely(5.0)
    _, gradients = spread_widely(1.0)
    assert not refused(losses, gradients).any()


def test_two_high_losses_in_a_row_are_not_refused():
    losses, gradients = spread_widely(5.0)
    losses[202:206], gradients[202:206] = 1.0, 1.0
    assert not refused(losses, gradients).any()


def fall() -> tuple[np.ndarray, np.ndarray]:
    """Losses that fall from 5 to 1 in 200 steps and stay there; gradient norms about 1."""
    generator = np.random.default_rng(2)
    losses = np.interp(np.arange(STEPS), [0, 200], [5.0, 1.0])
    losses *= 1 + 0.02 * generator.normal(size=STEPS)
    return losses, 1 + 0.1 * generator.normal(size=STEPS)


def test_a_loss_that_falls_steadily_is_compared_with_where_it_has_fallen_to():
    losses, gradients = fall()
    assert not refused(losses, gradients).any()
    losses[100], gradients[100] = 1.35 * losses[100], 3.0  # below what it was 60 steps before
    assert losses[100] < losses[40]
    assert np.flatnonzero(refused(losses, gradients)).tolist() == [100]


def test_a_spike_in_data_learnt_by_heart_is_an_outlier_only_above_the_first_losses():
    generator = np.random.default_rng(3)
    losses = np.where(np.arange(STEPS) < 100, 1.5, 1e-4)
    losses = losses * np.exp(0.5 * generator.normal(size=STEPS))
    gradients = losses.copy()
    losses[400], gradients[400] = 0.2, 0.05
    losses[500], gradients[500] = 3.0, 3.0
    assert np.flatnonzero(refused(losses, gradients)).tolist() == [500]


def test_a_run_that_overfits_its_batch_is_left_alone_until_its_loss_is_back():
    """As with Adam on a single batch, where loss and gradient rise again by powers of ten."""
    generator = np.random.default_rng(4)
    path = np.interp(np.arange(STEPS), [0, 300, 600, 620, 900], [0, -8, -8, -4, -4])
    losses = 10**path * np.exp(0.3 * generator.normal(size=STEPS))
    gradients = np.sqrt(losses)
    calm = follow(losses, gradients)
    assert not calm.refusable.any()
    assert not calm.sustained_rise.any()
    assert not calm.high_gradients.any()
    losses[1000:], gradients[1000:] = 3.0, 3.0
    assert np.flatnonzero(refused(losses, gradients))[:32].tolist() == [*range(1000, 1032)]


def test_every_signal_is_read_from_the_place_where_it_was_put():
    names = inspect.signature(make_signals).parameters
    numbers = dict(zip(names, range(1, 1 + len(names)), strict=True))
    del numbers["knows_loss"]
    given = {name: jnp.float32(number) for name, number in numbers.items()}
    signals = make_signals(**given, knows_loss=True)
    assert bool(signals.knows_loss)
    for name, number in numbers.items():
        read = getattr(signals, name)
        assert float(read) == (1 if read.dtype == bool else number), name


def test_settled_numbers_keep_their_bits():
    numbers = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, -3.5], np.float32)
    assert np.asarray(settle(jnp.asarray(numbers))).tobytes() == numbers.tobytes()
