"""Kernels and training steps on one NVIDIA GPU, compared with PyTorch on the same card.

    python benchmarks/gpu.py                        # at most six minutes; PyTorch if installed
    python benchmarks/gpu.py --seconds 120 --only attention --only torch
    python benchmarks/gpu.py --tiny                 # small shapes, for a trial on any machine

Runs from a bare checkout with jax, flax, optax, numpy and jaxtyping, and with torch and
transformers for the PyTorch cases. Each case runs in a process of its own, so that running out of
memory ends only that case, and its peak memory is its own. Prints one JSON object for each
measurement: agreement of the kernels with the reference in float32, attention alone, training steps
by remat, chunk of the loss and rows, the step of `transformers`' Qwen2 (SDPA, gradient
checkpointing, AdamW, one document a row), and decoding (`decode_device.py`). The last line is the
best step of the first size and the fastest decoding. Goals: MFU (causal) of 0.55 for 1.5B, then
0.6; 100,000 decoded ids a second.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import decode_device

ROOT = Path(__file__).resolve().parents[1]
VOCAB, ROWS, LENGTH = 168_960, 4, 8192
STEPS, WARMUP = 5, 2
LEAST_SECONDS = 20  # a case needs these to start and compile; with less left it is skipped
TINY = {"size": "tiny", "vocab": 512, "rows": 4, "length": 64, "steps": 1}


def cases(tiny: bool) -> Iterator[dict[str, Any]]:
    """Yields all cases, the most important first, because the time may not suffice for all."""
    shape = {"size": "1.5B", "vocab": VOCAB, "rows": ROWS, "length": LENGTH, "steps": STEPS}
    if tiny:
        shape = TINY
    yield {"kind": "parity", **shape}
    yield {"kind": "attention", **shape}
    yield {"kind": "step", **shape, "remat": "dots", "chunk": 4096}
    yield {"kind": "torch", **shape}
    first, second, *more = decode_device.cases(tiny)
    yield from (first, second)
    if tiny:
        return
    for size, remat, chunk, rows in (
        ("1.5B", "dots", 4096, 8),
        ("1.5B", "full", 4096, 8),
        ("1.5B", "dots", 8192, 4),
        ("1.5B", "dots", 1024, 4),
        ("1.5B", "none", 4096, 2),
        ("0.5B", "dots", 4096, 8),
        ("0.5B", "none", 4096, 4),
        ("1.5B", "full", 4096, 4),
        ("0.5B", "full", 4096, 16),
    ):
        changes = {"size": size, "remat": remat, "chunk": chunk, "rows": rows}
        yield {"kind": "step", **shape, **changes}
    yield {"kind": "torch", **shape, "size": "0.5B"}
    yield from more


def parity(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields relative distances of kernels' outputs and gradients to the reference in float32."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    random = np.random.default_rng(0)
    for length, at_once in ((1024, 64), (1000, 4)):
        length = min(length, case["length"])
        segments = 1 + np.cumsum(random.random((3, length)) < 1 / 40, axis=1)
        segments[0, length - length // 5 :] = 0
        segments[1] = 0  # a row of padding, which a last batch may have
        layout, qkv = _attention_inputs(case, segments)
        weight = jax.random.normal(jax.random.key(9), qkv[0].shape, jnp.bfloat16)
        weight = weight * (layout.segments > 0)[..., None, None]
        full = [x.astype(jnp.float32) for x in qkv]
        expected = _value_and_grads(layout, "reference", at_once)(*full, weight)
        for kernel in ("cudnn", "blockwise"):
            line = {"kernel": kernel, "length": length, "documents_at_once": at_once}
            try:
                found = _value_and_grads(layout, kernel, at_once)(*qkv, weight)
                errors = [_distance(*pair) for pair in zip(found, expected, strict=True)]
                yield line | {"relative_error": dict(zip("oqkv", errors, strict=True))}
            except Exception as error:  # the other kernels are measured nevertheless
                yield line | {"failed": _first_line(error)}


def attention(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the milliseconds of one layer's attention: forward, and forward with backward."""
    import jax

    from speechlm_jax.lm.bench import BenchConfig, synthetic_rows

    rows = synthetic_rows(BenchConfig(rows=case["rows"], length=case["length"]), 2)
    layout, qkv = _attention_inputs(case, rows["segments"])
    kernels = [("cudnn", 64), ("cudnn", 32), ("cudnn", 128), ("blockwise", 64)]
    for kernel, at_once in kernels:
        line = {"kernel": kernel, "documents_at_once": at_once}
        try:
            both = jax.jit(_value_and_grads(layout, kernel, at_once)).lower(*qkv, qkv[0]).compile()
            forward = jax.jit(_attend(layout, kernel, at_once)).lower(*qkv).compile()
            yield line | {
                "documents": int(layout.segments.max()),
                "forward_ms": _milliseconds(forward, qkv),
                "both_ms": _milliseconds(both, (*qkv, qkv[0])),
                "temporary_bytes": both.memory_analysis().temp_size_in_bytes,
            }
        except Exception as error:
            yield line | {"failed": _first_line(error)}


def step(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the measurements of the training step; see `speechlm bench`."""
    from speechlm_jax.lm.bench import BenchConfig, bench_train
    from speechlm_jax.lm.presets import preset
    from speechlm_jax.nn import fused_loss

    fused_loss.CHUNK_POSITIONS = dict.fromkeys(fused_loss.CHUNK_POSITIONS, case["chunk"])
    model = preset(case["size"], vocab_size=case["vocab"], remat=case["remat"])
    config = BenchConfig(
        rows=case["rows"], length=case["length"], steps=case["steps"], warmup=WARMUP
    )
    found = bench_train(model, config)
    yield {name: value for name, value in found.items() if name not in ("model", "bench")}


def torch_step(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the measurements of a step of `transformers`' model of the same shape.

    Its weights are float32, its products bfloat16 (autocast).
    """
    import numpy as np
    import torch
    import transformers

    from speechlm_jax.lm.presets import preset
    from speechlm_jax.lm.stage import language_model_work
    from speechlm_jax.train.work import rates

    ours = preset(case["size"], vocab_size=case["vocab"])
    stack, rows, length = ours.transformer, case["rows"], case["length"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=ours.vocab_size, hidden_size=stack.embed, intermediate_size=stack.mlp,
            num_hidden_layers=stack.num_layers, num_attention_heads=stack.heads,
            num_key_value_heads=stack.kv_heads, tie_word_embeddings=ours.tied,
            attn_implementation="sdpa", use_cache=False,
        )
    ).to(device)  # fmt: skip
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, case["vocab"], (rows, length), device=device)
    seconds = []
    for _ in range(WARMUP + case["steps"]):
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())  # waits for the device
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[WARMUP:])
    work = language_model_work(ours)({"segments": np.ones((rows, length), np.int32)})
    kind = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    yield {
        "device": kind,
        "torch": torch.__version__,
        "step_seconds": median,
        **rates(work, median, chips=1, device_kind=kind),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


KINDS: dict[str, Callable[[dict[str, Any]], Iterator[dict[str, Any]]]] = {
    "parity": parity, "attention": attention, "step": step, "torch": torch_step,
    "decode": decode_device.decode,
}  # fmt: skip


def _attention_inputs(case: dict[str, Any], segments: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns the layout of documents, and random queries, keys and values in bfloat16."""
    import jax
    import jax.numpy as jnp

    from speechlm_jax.lm.presets import preset
    from speechlm_jax.nn.attention import Layout

    places = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    stack = preset(case["size"]).transformer
    heads = (stack.heads, stack.kv_heads, stack.kv_heads)
    qkv = tuple(
        jax.random.normal(jax.random.key(n), (*segments.shape, count, stack.head_dim), jnp.bfloat16)
        for n, count in enumerate(heads)
    )
    return Layout(jnp.array(segments, jnp.int32), places), qkv


def _attend(layout: Any, kernel: Any, at_once: int) -> Callable[..., Any]:
    from speechlm_jax.nn.attention import over

    def attend(q: Any, k: Any, v: Any) -> Any:
        found = over(
            layout, 1, kernel=kernel, documents_at_once=at_once, dtype=q.dtype,
            head_dim=q.shape[-1],
        )  # fmt: skip
        return found(q, k, v)

    return attend


def _value_and_grads(layout: Any, kernel: Any, at_once: int) -> Callable[..., Any]:
    """Returns a function (q, k, v, weight) -> (output, gradients of its weighted sum).

    The output is 0 at padding.
    """
    import jax
    import jax.numpy as jnp

    attend = _attend(layout, kernel, at_once)

    def run(q: Any, k: Any, v: Any, weight: Any) -> tuple[Any, ...]:
        out, pull = jax.vjp(attend, q, k, v)
        real = (layout.segments > 0)[..., None, None]
        return jnp.where(real, out, 0), *pull(weight.astype(out.dtype))

    return jax.jit(run)


def _distance(one: Any, other: Any) -> float:
    import numpy as np

    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def _milliseconds(run: Callable[..., Any], arrays: tuple[Any, ...], times: int = 10) -> float:
    import jax

    jax.block_until_ready(run(*arrays))
    began = time.perf_counter()
    for _ in range(times):
        last = run(*arrays)
    jax.block_until_ready(last)
    return (time.perf_counter() - began) / times * 1e3


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def run_one(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the results of a case, each with the case's fields; an exception is a result."""
    try:
        for found in KINDS[case["kind"]](case):
            yield {**case, **found}
    except Exception as error:
        yield {**case, "failed": _first_line(error)}


def _in_process(case: dict[str, Any], seconds: float) -> Iterator[dict[str, Any]]:
    """Yields a case's results as its process prints them; the process is killed after `seconds`."""
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ, "PYTHONPATH": path}
    command = ["timeout", "-s", "KILL", str(seconds), *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if child.returncode:
        yield {**case, "failed": f"the process ended with code {child.returncode}"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures case by case; returns exit code 1 if no step and no decoding was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=340, help="in all; default 340")
    parser.add_argument("--only", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on any machine")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        for line in run_one(args.one):
            print(json.dumps(line), flush=True)
        return 0
    began, best = time.monotonic(), {"best": None, "best_decode": None}
    chosen = [case for case in cases(args.tiny) if case["kind"] in (args.only or KINDS)]
    for case in chosen:
        left = args.seconds - (time.monotonic() - began)
        late = [{**case, "skipped": "no time left"}]
        for line in _in_process(case, left) if left > LEAST_SECONDS else late:
            print(json.dumps(line), flush=True)
            for kind, name, rate in (
                ("step", "best", "tokens_per_second"),
                ("decode", "best_decode", "ids_per_second"),
            ):
                is_one = line["kind"] == kind and line["size"] == chosen[0]["size"]
                if is_one and line.get(rate, 0) > (best[name] or {}).get(rate, 0):
                    best[name] = line
    print(json.dumps(best), flush=True)
    return int(not any(best.values()))


if __name__ == "__main__":
    sys.exit(main())
