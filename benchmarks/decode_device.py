"""Decoding on one accelerator: the bound, what is reached, and where the rest goes.

`benchmarks/gpu.py` and `benchmarks/decode.py --only device` run these cases, each in a process of
its own. Runs from a bare checkout with jax, flax, optax, numpy and jaxtyping.
"""

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

VOCAB, SAYABLE = 168_960, 16_385  # text-to-token says 16,384 codes and the end of speech
MEASURED = 2  # times
WARMUP = 64  # requests: of all padded lengths
# Codes a word in 9,370 spans that the quickstart (seed 0) spoke: every twentieth of the spans.
CODES_PER_WORD = (
    2.89, 3.17, 3.33, 3.45, 3.57, 3.67, 3.75, 3.86, 3.93, 4.0,
    4.11, 4.21, 4.31, 4.4, 4.5, 4.62, 4.78, 5.0, 5.2, 5.7,
)  # fmt: skip
MEAN_WORDS = 10  # of a span
MOST_CODES_PER_WORD = 9  # the limit of a reply (text_to_token.synthesize)


def cases(tiny: bool) -> Iterator[dict[str, Any]]:
    """Yields the cases, the most important first."""
    shape = {"kind": "decode", "size": "1.5B", "vocab": VOCAB, "prompt": 64, "new": 256}
    if tiny:
        shape |= {"size": "tiny", "vocab": 512, "prompt": 8, "new": 16}
        yield {**shape, "subset": 65, "slots": [16]}
        yield {**shape, "subset": None, "slots": [16]}
        return
    for slots in ([1024], [512, 2048, 256, 64]):
        yield {**shape, "subset": SAYABLE, "slots": slots}
        yield {**shape, "subset": None, "slots": slots}


def span_lengths(number: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """Returns (ids of the prompt, codes, limit) of spans as the quickstart speaks them.

    Words are Poisson and not 0, a word is one id of text, and one span in 50 runs to its limit.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    words = random.poisson(MEAN_WORDS, 2 * number)
    words = words[words > 0][:number]
    limits = MOST_CODES_PER_WORD * words + 1
    codes = np.maximum(1, np.rint(words * random.choice(CODES_PER_WORD, number))).astype(int)
    codes = np.where(np.arange(number) % 50 == 25, limits, codes)
    return list(zip((words + 4).tolist(), codes.tolist(), limits.tolist(), strict=True))


def decode(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the card's rates; then for each number of slots the bound and what is reached."""
    import jax
    import numpy as np

    from speechlm_jax.lm.presets import preset
    from speechlm_jax.nn import decoding_params
    from speechlm_jax.nn.language_model import functional

    card = measure_card(tiny=case["size"] == "tiny")
    yield {"device": jax.devices()[0].device_kind, **card}
    model = preset(case["size"], vocab_size=case["vocab"])
    params = jax.jit(functional(model).init)(jax.random.key(0))[0]
    subset = None if case["subset"] is None else np.arange(case["subset"]) + case["vocab"] // 2
    weights = decoding_params.prepare(model, params, vocab_subset=subset)
    del params
    for slots in case["slots"]:
        try:
            least = bound(weights, slots, case["prompt"] + case["new"] / 2, card)
            yield {"slots": slots, **least}
            yield from ({"slots": slots, **found} for found in measure(weights, slots, case, least))
        except Exception as error:  # such as memory: fewer slots are measured nevertheless
            line = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            yield {"slots": slots, "failed": line}


def measure_card(*, tiny: bool = False) -> dict[str, float]:
    """Returns what a copy reads and writes and what a product computes in a second."""
    import jax
    import jax.numpy as jnp

    size = 512 if tiny else 8192
    x = jnp.ones((size, size), jnp.bfloat16)
    many = jnp.ones((8 if tiny else 16, size, size), jnp.bfloat16)
    copy = seconds_of(jax.jit(lambda many: -many), many)
    product = seconds_of(jax.jit(lambda x: x @ x), x)
    return {
        "copy_gb_per_second": float(f"{2 * many.nbytes / copy / 1e9:.4g}"),
        "product_tflops": float(f"{2 * size**3 / product / 1e12:.4g}"),
    }


def seconds_of(run: Callable[..., Any], *arguments: Any, times: int = 10) -> float:
    """Returns the median seconds of a call, once it is compiled."""
    import jax

    jax.block_until_ready(run(*arguments))
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def bound(
    weights: Any, slots: int, filled: float, card: dict[str, float]
) -> dict[str, float | int]:
    """Returns what a step must read and compute, and the least milliseconds that takes.

    Args:
      filled: positions that a row holds, on average.
    """
    import jax

    model, stack = weights.model.config, weights.model.config.transformer
    # The rows of an embedding that is no output layer too are few.
    kept = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights.params)
        if model.tied or path[0].key != "embedding"
    ]
    item = jax.numpy.dtype(model.dtype).itemsize
    cache = slots * filled * stack.num_layers * 2 * stack.kv_heads * stack.head_dim * item
    heads = stack.num_layers * stack.heads * stack.head_dim
    flops = 2 * slots * sum(leaf.size for leaf in kept) + 4 * slots * filled * heads
    read = sum(leaf.nbytes for leaf in kept)
    by_bytes = (read + cache) / card["copy_gb_per_second"] / 1e6
    by_flops = flops / card["product_tflops"] / 1e9
    least = max(by_bytes, by_flops)
    return {
        "weight_bytes": read,
        "cache_bytes": round(cache),
        "flops": round(flops),
        "bound_bytes_ms": round(by_bytes, 3),
        "bound_flops_ms": round(by_flops, 3),
        "bound_ms": round(least, 3),
        "bound_ids_per_second": round(slots / least * 1e3),
    }


def measure(
    weights: Any, slots: int, case: dict[str, Any], least: dict[str, float | int]
) -> Iterator[dict[str, Any]]:
    """Yields the speed of alike requests, greedy and sampled, of spans, and a step's profile."""
    import jax

    from speechlm_jax.id_set import IdSet
    from speechlm_jax.nn.engine import Engine
    from speechlm_jax.nn.sampling import GREEDY, Sampling
    from speechlm_jax.nn.scheduler import Scheduler

    subset = weights.subset
    said = range(case["vocab"]) if subset is None else subset
    allowed = IdSet(((int(said[0]), int(said[-1]) + 1),))
    longest = 32 * (MOST_CODES_PER_WORD + 1)  # ids of a span of 32 words
    engine = Engine(weights, slots=slots, length=max(case["prompt"] + case["new"], longest))
    scheduler = Scheduler(engine, overlap=jax.default_backend() != "cpu")
    alike = [(case["prompt"], case["new"])] * slots
    steps = step_milliseconds(engine, case, allowed)
    yield {**steps, "of_bound": round(least["bound_ms"] / steps["step_ms"], 3)}
    for name, sampling in (
        ("greedy", GREEDY),
        ("temperature", Sampling(0.5)),
        ("nucleus", Sampling(0.8, top_p=0.9)),
    ):
        yield {"requests": "alike", "sampling": name, **run(scheduler, alike, allowed, sampling)}
    spans = [(prompt, codes) for prompt, codes, _ in span_lengths(4 * slots)]
    yield {"requests": "spans", "sampling": "temperature",
           **run(scheduler, spans, allowed, Sampling(0.5))}  # fmt: skip
    yield {"profile": profile(lambda: jax.block_until_ready(engine.advance(8, slots + 1)),
                              lambda: enter(engine, case, allowed))}  # fmt: skip


def run(
    scheduler: Any, lengths: Sequence[tuple[int, int]], allowed: Any, sampling: Any
) -> dict[str, Any]:
    """Answers requests of (ids of the prompt, ids of the reply) some times; returns the speed."""
    import dataclasses

    from speechlm_jax.nn.scheduler import Job

    seconds, ids, stats = [], sum(new for _, new in lengths), {}
    for turn in range(1 + MEASURED):
        jobs = [
            Job(number, [(number + place) % 500 for place in range(prompt)], allowed, (), new,
                number, sampling)
            for number, (prompt, new) in enumerate(lengths if turn else lengths[:WARMUP])
        ]  # fmt: skip
        before = dataclasses.asdict(scheduler.stats)
        began = time.perf_counter()
        answered = sum(1 for _ in scheduler.run(jobs))
        took = time.perf_counter() - began
        assert answered == ids or not turn
        after = dataclasses.asdict(scheduler.stats)
        stats = {name: after[name] - before[name] for name in after}
        seconds += [took] if turn else []
    rates = sorted(round(ids / each) for each in seconds)
    return {"ids_per_second": statistics.median(rates), "spread": [rates[0], rates[-1]],
            **shares(stats)}  # fmt: skip


def shares(stats: dict[str, float]) -> dict[str, float | None]:
    """Returns shares that tell how well slots and host were used; None: of nothing."""

    def share(part: float, whole: float) -> float | None:
        return round(part / whole, 4) if whole else None

    tail = stats["slot_steps"] - stats["waiting_slot_steps"]
    return {
        "busy_while_waiting": share(stats["waiting_busy"], stats["waiting_slot_steps"]),
        "busy_in_tail": share(stats["busy"] - stats["waiting_busy"], tail),
        "busy": share(stats["busy"], stats["slot_steps"]),
        "host_share": share(stats["host_seconds"], stats["seconds"]),
        "steps_per_call": share(stats["steps"], stats["calls"]),
        "searched": share(stats["searched"], stats["busy"]),
    }


def enter(engine: Any, case: dict[str, Any], allowed: Any) -> None:
    """Fills every slot with a request of the case's length."""
    from speechlm_jax.nn.engine import Entry
    from speechlm_jax.nn.sampling import GREEDY

    engine.set_rule(0, allowed.mask(case["vocab"]), ())
    entries = [
        Entry(slot, 0, [(slot + place) % 500 for place in range(case["prompt"])], True,
              case["new"], 0, slot, GREEDY)
        for slot in range(engine.slots)
    ]  # fmt: skip
    for first in range(0, len(entries), engine.rows):
        engine.read(entries[first : first + engine.rows])


def step_milliseconds(engine: Any, case: dict[str, Any], allowed: Any) -> dict[str, float]:
    """Returns the milliseconds of a step of the full engine, and of reading all prompts."""
    from speechlm_jax.nn.engine import MAX_STEPS, unpack

    steps, reads = [], []
    for turn in range(1 + MEASURED):
        began = time.perf_counter()
        enter(engine, case, allowed)
        unpack(engine.advance(1, engine.slots + 1))
        ready = time.perf_counter()
        calls = max(1, (case["new"] - 1) // MAX_STEPS)
        for _ in range(calls):
            report = engine.advance(MAX_STEPS, engine.slots + 1)
        unpack(report)
        ended = time.perf_counter()
        while unpack(engine.advance(MAX_STEPS, engine.slots + 1)).active.any():
            pass
        if turn:
            reads.append(ready - began)
            steps.append((ended - ready) / min(calls * MAX_STEPS, case["new"] - 1))
    return {
        "step_ms": round(statistics.median(steps) * 1e3, 3),
        "step_spread_ms": [round(each * 1e3, 3) for each in (min(steps), max(steps))],
        "prompts_ms": round(statistics.median(reads) * 1e3, 1),
    }


def profile(run: Callable[[], Any], prepare: Callable[[], Any]) -> dict[str, float]:
    """Returns the milliseconds of the device's operations by kind, the longest first."""
    import jax

    prepare()
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_serialized_xspace(path.read_bytes())
    spent: Counter[str] = Counter()
    for plane in data.planes:
        if plane.name.startswith("/device:") or jax.default_backend() == "cpu":
            for line in plane.lines:
                if line.name in ("python", "XLA Modules", "Steps"):
                    continue
                for event in line.events:
                    spent[event.name.split(".")[0]] += event.duration_ns / 1e6
    return {name[:60]: round(spent_ms, 3) for name, spent_ms in spent.most_common(12)}
