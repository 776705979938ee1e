"""The codebook against numpy and PyTorch; in pieces, and in little memory; what is no latent."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speechlm_jax import config as configs
from speechlm_jax.errors import UserError
from speechlm_jax.speech_tokenizer import quantizer as module
from speechlm_jax.speech_tokenizer.quantizer import Quantizer, QuantizerConfig

SIZE, DIM = 6, 3
SMALL = {"codebook_size": SIZE, "codebook_dim": DIM, "ema_decay": 0.8, "dead_code_threshold": 0.3}


@pytest.fixture(scope="module")
def codebook():
    return np.random.default_rng(0).normal(size=(SIZE, DIM)).astype(np.float32)


def make(codebook, **changes):
    """A quantizer before its first update."""
    size, dim = codebook.shape
    given = {**SMALL, "codebook_size": size, "codebook_dim": dim, **changes}
    made = nnx.eval_shape(lambda: Quantizer(QuantizerConfig(**given), rngs=nnx.Rngs(0)))
    state = {
        "codebook": jnp.array(codebook),
        "ema_count": jnp.ones(size),
        "ema_sum": jnp.array(codebook),
        "updates": jnp.int32(0),
    }
    return nnx.merge(nnx.split(made)[0], state)


@partial(jax.jit, static_argnames=("config", "parts", "piece"))
def step(state, latents, valid, key, *, config, parts, piece):
    """One update in `parts` micro batches: (state, codes, commitment by frame, sums)."""
    made = nnx.eval_shape(lambda: Quantizer(config, rngs=nnx.Rngs(0)))
    quantizer = nnx.merge(nnx.split(made)[0], state)
    found = quantizer(latents)
    numbers = quantizer.draw(valid, key)
    sums = [
        quantizer.sums(*(x[part::parts] for x in (latents, found.codes, valid, numbers)))
        for part in range(parts)
    ]
    sums = jax.tree.map(lambda *x: sum(x), *sums)
    return quantizer.updated(sums), found.codes, found.commitment, sums


def move(quantizer, latents, valid, seed, parts=1):
    """Moves the codebook by a step; returns its codes, commitment by frame, and sums."""
    state = nnx.to_pure_dict(nnx.split(quantizer)[1])
    state, *found = step(
        state, np.asarray(latents, np.float32), valid, jax.random.key(seed),
        config=quantizer.config, parts=parts, piece=module.PIECE,
    )  # fmt: skip
    for name, value in state.items():
        getattr(quantizer, name)[...] = value
    return found


def state_of(quantizer):
    return [
        np.asarray(x[...]) for x in (quantizer.codebook, quantizer.ema_count, quantizer.ema_sum)
    ]


def batch(seed, rows=2):
    """Latents near three of the entries only, so that the others die; a third is padding."""
    random = np.random.default_rng(seed)
    latents = random.normal(size=(rows, 9, DIM)).astype(np.float32) / 4
    latents[0, :, 0] += 2.0
    return latents, random.random((rows, 9)) < 0.67


def nearest(latents, codebook):
    return np.argmin(((latents[..., None, :] - codebook) ** 2).sum(-1), axis=-1)


def test_codes_are_the_nearest_entries(codebook):
    latents, _ = batch(1)
    quantizer = make(codebook)
    np.testing.assert_array_equal(quantizer.nearest(jnp.array(latents)), nearest(latents, codebook))
    codes = jnp.arange(SIZE)[None]
    np.testing.assert_array_equal(quantizer.nearest(quantizer.lookup(codes)), codes)


@pytest.mark.parametrize("piece", [1, 4, 5, 6])
def test_pieces_of_the_codebook_change_nothing(codebook, monkeypatch, piece):
    """The last piece may overlap; entries that are equal are told apart by their place."""
    codebook = codebook.copy()
    codebook[[3, 5]] = codebook[1]
    latents, valid = (np.concatenate(parts) for parts in zip(*map(batch, range(5)), strict=True))
    latents[0, :4] = codebook[5]
    whole, pieces = make(codebook), make(codebook)
    moved = move(whole, latents, valid, 0)
    monkeypatch.setattr(module, "PIECE", piece)
    found = move(pieces, latents, valid, 0)
    codes = np.asarray(found[0])
    np.testing.assert_array_equal(codes, nearest(latents, codebook))
    assert (codes[0, :4] == 1).all() and not np.isin(codes, [3, 5]).any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, moved)


def test_a_codebook_of_one_entry_is_the_mean():
    latents, valid = batch(3)
    quantizer = make(np.ones((1, DIM), np.float32), ema_decay=0.0)
    assert not np.asarray(quantizer.nearest(jnp.array(latents))).any()
    move(quantizer, latents, valid, 0)
    np.testing.assert_allclose(state_of(quantizer)[0][0], latents[valid].mean(axis=0), rtol=1e-5)


def test_distances_of_half_precision_latents_are_of_full_precision(codebook):
    """Two entries that bfloat16 cannot tell apart."""
    book = np.stack([codebook[0] + 8.0, codebook[0] + 8.001]).astype(np.float32)
    latents = jnp.array(book[None] + np.array([[[-0.1], [0.1]]]), jnp.bfloat16)
    found = make(book).nearest(latents)
    np.testing.assert_array_equal(found, nearest(np.asarray(latents, np.float64), book))
    assert make(book)(latents).vectors.dtype == jnp.float32


def test_moving_averages_equal_a_loop_over_batches(codebook):
    quantizer = make(codebook)
    count, total = np.ones(SIZE), codebook.astype(np.float64)
    book, restarted = codebook.astype(np.float64), 0
    for step in range(8):
        latents, valid = batch(step)
        codes = nearest(latents, book)
        for entry in range(SIZE):
            mine = latents[valid & (codes == entry)]
            count[entry] = 0.8 * count[entry] + 0.2 * len(mine)
            total[entry] = 0.8 * total[entry] + 0.2 * mine.sum(axis=0)
        move(quantizer, latents, valid, step)
        found = state_of(quantizer)
        for entry in np.flatnonzero(count < 0.3):
            fresh = found[0][entry]
            assert (np.abs(latents[valid] - fresh).sum(-1) < 1e-6).any(), "a valid latent"
            count[entry], total[entry] = 1.0, fresh
            restarted += 1
        book = total / count[:, None]
        for mine, expected in zip(found, (book, count, total), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
        assert quantizer.updates[...] == step + 1
    assert restarted >= 2


def test_training_equals_the_released_tokenizers_in_torch():
    """250 updates with restarts, by the rules of its code; the drawn latents are ours."""
    torch = pytest.importorskip("torch")
    size, dim, every, decay = 24, 8, 50, 0.96
    random = np.random.default_rng(7)
    first = random.normal(size=(size, dim)).astype(np.float32)
    config = QuantizerConfig.released(codebook_size=size, codebook_dim=dim)
    quantizer = make(first, **{**vars(config), "restart_every_steps": every, "ema_decay": decay})
    count, weight = torch.ones(size), torch.tensor(first)
    book, restarts = torch.tensor(first), []
    for update in range(1, 251):
        if update % 100 == 1:
            centres = random.normal(size=(5, dim))  # other entries are chosen from now on
        which = random.integers(0, 5, (4, 12))
        latents = (centres[which] + 0.3 * random.normal(size=(4, 12, dim))).astype(np.float32)
        valid = np.arange(12) < random.integers(3, 13, (4, 1))
        codes, commitment, sums = move(quantizer, latents, valid, update)
        flat, mask = torch.tensor(latents).reshape(-1, dim), torch.tensor(valid).reshape(-1)
        distances = (book**2).sum(1) + (flat**2).sum(1, keepdim=True) - 2 * flat @ book.T
        ids = distances.argmin(1)
        np.testing.assert_array_equal(np.asarray(codes)[valid], ids[mask])
        error = ((flat - book[ids]) ** 2).mean(1)[mask].mean()
        np.testing.assert_allclose(commitment[valid].mean(), error, rtol=1e-5)
        chosen = torch.nn.functional.one_hot(ids, size).float() * mask[:, None]
        count = count * decay + (1 - decay) * chosen.sum(0)
        total = count.sum()
        count = (count + 1e-5) / (total + size * 1e-5) * total
        weight = weight * decay + (1 - decay) * chosen.T @ flat
        book = weight / count[:, None]
        if update % every == 0:
            dead = (count < decay**every).nonzero()[:, 0]
            fresh = torch.tensor(np.array(sums.drawn[: len(dead)]))
            assert all((flat[mask] == one).all(1).any() for one in fresh)
            count[dead], weight[dead], book[dead] = 1.0, fresh, fresh
            restarts.append(len(dead))
        for mine, theirs in zip(state_of(quantizer), (book, count, weight), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    assert np.count_nonzero(restarts) >= 2 and max(restarts) < size


def test_the_split_into_micro_batches_changes_nothing(codebook):
    quantizers = [make(codebook, restart_every_steps=2) for _ in range(3)]
    for step in range(6):
        latents, valid = batch(step, rows=8)
        for parts, quantizer in zip((1, 2, 4), quantizers, strict=True):
            move(quantizer, latents, valid, step, parts)
    whole, *split = map(state_of, quantizers)
    assert not np.allclose(whole[0], codebook, atol=0.5)
    for found in split:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, whole)


def test_every_valid_frame_is_drawn_as_often_as_any_other():
    """And none twice, so that no two entries are restarted from one frame."""
    quantizer = make(np.zeros((4, 1), np.float32))
    valid = jnp.arange(15).reshape(3, 5) % 3 > 0
    draw = jax.vmap(lambda key: quantizer.draw(valid, key))
    numbers = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    for number in range(4):
        assert ((numbers == number).sum(axis=(1, 2)) == 1).all()
    shares = (numbers < 4).mean(axis=0)
    np.testing.assert_allclose(shares, np.where(valid, 0.4, 0.0), atol=0.03)


def test_restarts_take_turns(codebook):
    """Every third update, by a threshold of its own power of the decay."""
    quantizer = make(
        codebook, restart_every_steps=3, dead_code_threshold=None, count_smoothing=1e-5
    )
    assert quantizer.config.least_count == 0.8**3
    latents, valid = np.tile(codebook[2] + 0.01, (2, 9, 1)), np.ones((2, 9), bool)
    for update in range(1, 7):
        before = state_of(quantizer)[0]
        move(quantizer, latents, valid, update)
        moved = np.abs(state_of(quantizer)[0] - before).sum(axis=1) > 0.1
        assert moved.any() == (update == 6), "smoothing lifts counts of 0.8**3 to just above it"
    book = state_of(quantizer)[0]
    np.testing.assert_allclose(book, np.tile(latents[0, 0], (SIZE, 1)), atol=1e-3)


@pytest.mark.parametrize("start_step", [0, 8])
@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_a_batch_without_valid_frames_leaves_the_codebook(codebook, start_step, decay):
    """Whatever lies in the padding; there is nothing to restart from."""
    quantizer = make(codebook, start_step=start_step, ema_decay=decay)
    for step in range(12):
        move(quantizer, np.full((2, 9, DIM), np.nan), np.zeros((2, 9), bool), step)
    np.testing.assert_allclose(state_of(quantizer)[0], codebook, rtol=1e-5)


def test_padding_counts_for_nothing(codebook):
    latents, valid = batch(1)
    dirty = np.where(valid[..., None], latents, np.nan)
    clean, other = make(codebook), make(codebook)
    for quantizer, given in ((clean, latents), (other, dirty)):
        move(quantizer, given, valid, 0)
    jax.tree.map(np.testing.assert_array_equal, state_of(clean), state_of(other))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_latents_that_are_not_finite_get_a_code_all_the_same(codebook, wrong):
    """So that no lookup is out of range; a training step is skipped (tests/train/test_step.py)."""
    quantized = make(codebook)(jnp.full((1, 2, DIM), wrong))
    assert ((0 <= quantized.codes) & (quantized.codes < SIZE)).all()
    assert not np.isfinite(quantized.commitment).any()


def test_more_dead_entries_than_frames_share_them(codebook):
    quantizer = make(codebook, ema_decay=0.0)
    latents, valid = batch(0)
    valid[:] = np.arange(9) < 1
    move(quantizer, latents, valid, 0)
    restarted = state_of(quantizer)[0]
    assert (np.abs(restarted[:, None] - latents[valid]).sum(-1).min(axis=1) < 1e-6).all()
    assert len(np.unique(restarted, axis=0)) == 2


def test_it_needs_little_memory():
    """The codebook of 6.25 Hz and 6,016 frames: 6.2 GiB when all were compared at once."""
    config = QuantizerConfig.released(codebook_size=65_536, codebook_dim=1280)
    graph, state = nnx.split(nnx.eval_shape(lambda: Quantizer(config, rngs=nnx.Rngs(0))))
    latents = jax.ShapeDtypeStruct((32, 188, 1280), jnp.bfloat16)
    valid = jax.ShapeDtypeStruct((32, 188), jnp.bool_)

    def update(state, latents, valid):
        quantizer = nnx.merge(graph, state)
        numbers = quantizer.draw(valid, jax.random.key(0))
        codes = quantizer.nearest(latents)
        return quantizer.updated(quantizer.sums(latents, codes, valid, numbers))

    def lookup(state, latents):
        return nnx.merge(graph, state)(latents)

    given = nnx.to_pure_dict(state)
    for function, arrays in ((update, (latents, valid)), (lookup, (latents,))):
        planned = jax.jit(function).lower(given, *arrays).compile().memory_analysis()
        assert planned.temp_size_in_bytes < 0.2 * 2**30


def test_gradients_pass_straight_through_and_never_reach_the_codebook(codebook):
    latents, _ = batch(2)
    weights = jnp.array(np.random.default_rng(3).normal(size=latents.shape), jnp.float32)

    def through(latents, book):
        quantizer = make(codebook)
        quantizer.codebook[...] = book
        return jnp.sum(quantizer(latents).vectors * weights)

    for_latents, for_book = jax.grad(through, argnums=(0, 1))(
        jnp.array(latents), jnp.array(codebook)
    )
    np.testing.assert_allclose(for_latents, weights, rtol=1e-6)
    assert not np.any(for_book)
    quantized = make(codebook)(jnp.array(latents))
    np.testing.assert_allclose(quantized.vectors, codebook[nearest(latents, codebook)], atol=1e-6)


def test_commitment_pulls_latents_to_their_entries(codebook):
    latents, _ = batch(4)
    chosen = codebook[nearest(latents, codebook)]
    commitment = make(codebook)(jnp.array(latents)).commitment
    np.testing.assert_allclose(commitment, ((latents - chosen) ** 2).mean(-1), rtol=1e-5)
    gradient = jax.grad(lambda x: make(codebook)(x).commitment.sum())(jnp.array(latents))
    np.testing.assert_allclose(gradient, 2 * (latents - chosen) / DIM, rtol=1e-4, atol=1e-6)


def test_before_the_start_latents_pass_and_fill_the_codebook(codebook):
    latents, valid = batch(5)
    early = make(codebook, start_step=8)(jnp.array(latents))
    np.testing.assert_array_equal(early.vectors, latents)
    assert not np.any(early.commitment)
    quantizer = make(codebook, start_step=8)
    for step in range(8):
        move(quantizer, *batch(step), step)
    everything = np.concatenate([x[v] for x, v in map(batch, range(8))])
    book, count, total = state_of(quantizer)
    distances = np.abs(everything[None] - book[:, None]).sum(-1)
    assert (distances.min(axis=1) < 1e-6).all(), "every entry is a valid latent of these batches"
    np.testing.assert_array_equal(count, 1.0)
    np.testing.assert_array_equal(total, book)
    assert quantizer(jnp.array(latents)).commitment.sum() > 0


def test_restarts_are_counted_from_the_start_on(codebook):
    quantizer = make(codebook, start_step=2, restart_every_steps=3, dead_code_threshold=0.9)
    for step in range(1, 6):
        move(quantizer, *batch(step), step)
        assert (state_of(quantizer)[1].min() == 1) == (step in (1, 2, 5))


def test_a_config_of_an_older_version_means_what_it_did():
    old = {**SMALL, "start_step": 4}
    found = configs.from_json(QuantizerConfig, old)
    assert (found.restart_every_steps, found.count_smoothing, found.least_count) == (1, 0.0, 0.3)
    assert configs.fingerprint(found) == configs.fingerprint({"class": "QuantizerConfig", **old})


@pytest.mark.parametrize(
    "wrong", [{"restart_every_steps": 0}, {"count_smoothing": -1.0}, {"ema_decay": 1.5}], ids=str
)
def test_a_setting_out_of_range_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        QuantizerConfig(**wrong)
