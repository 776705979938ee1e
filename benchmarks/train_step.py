"""Our training step compared with `transformers` and PyTorch on this CPU: speed and memory.

    python benchmarks/train_step.py                 # 30M and 150M parameters, three turns each
    python benchmarks/train_step.py --size 30M --turns 1

Both run the same Llama: batch 4 x 512, 32,000 ids, float32, AdamW, two threads. Ours trains on
packed documents; theirs on one document a row, because PyTorch's own attention has no packing. The
two take turns, each in a process of its own; a figure is the median of the turns. Prints one JSON
object for each turn, then one for each size with the ratio of tokens a second, which should be at
least 1.2, and the ratio of peak memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from speechlm_jax.cli.main import LARGE_PAGES, MALLOC

THREADS = 2
ROWS, LENGTH, VOCAB = 4, 512, 32_000
SIZES = {
    # layers, embed, heads, kv_heads, head_dim, mlp
    "30M": (6, 384, 6, 6, 64, 1024),
    "150M": (12, 768, 12, 12, 64, 2048),
}
STEPS, WARMUP = 5, 2


def ours(size: str) -> dict[str, float]:
    """Measures our step; see `speechlm bench`."""
    from speechlm_jax.lm.bench import BenchConfig, bench_train
    from speechlm_jax.nn.language_model import LanguageModelConfig
    from speechlm_jax.nn.transformer import TransformerConfig

    layers, embed, heads, kv_heads, head_dim, mlp = SIZES[size]
    stack = TransformerConfig(layers, embed, heads, kv_heads, head_dim, mlp)
    model = LanguageModelConfig(VOCAB, stack, tied=False, scale_embeddings=False)
    config = BenchConfig(rows=ROWS, length=LENGTH, steps=STEPS, warmup=WARMUP)
    found = bench_train(model, config)
    return {"parameters": found["parameters"], "step_seconds": found["step_seconds"]}


def theirs(size: str) -> dict[str, float]:
    """Measures the step of LlamaForCausalLM.

    It uses the model's own loss and torch.optim.AdamW (fused), and clips gradients at norm 1.
    """
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    layers, embed, heads, kv_heads, head_dim, mlp = SIZES[size]
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=embed, intermediate_size=mlp, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
            attn_implementation="sdpa", use_cache=False,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, VOCAB, (ROWS, LENGTH))
    seconds = []
    for _ in range(WARMUP + STEPS):
        began = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "step_seconds": statistics.median(seconds[WARMUP:])}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures both in turns; returns exit code 1 if a ratio of speed is below 1.2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, action="append", help="default: both")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    sizes = args.size or list(SIZES)
    if args.one:
        print(json.dumps(_measure(args.one, sizes[0])))
        return 0
    slow = False
    for size in sizes:
        turns: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
        for turn in range(args.turns):
            for who in ("ours", "theirs") if turn % 2 == 0 else ("theirs", "ours"):
                turns[who].append(_in_process(who, size))
                print(json.dumps({"size": size, "who": who, **turns[who][-1]}), flush=True)
        median = {
            (who, what): statistics.median(turn[what] for turn in found)
            for who, found in turns.items()
            for what in ("tokens_per_second", "peak_mb")
        }
        speed = median["ours", "tokens_per_second"] / median["theirs", "tokens_per_second"]
        memory = median["ours", "peak_mb"] / median["theirs", "peak_mb"]
        print(json.dumps({"size": size, "tokens_per_second": round(speed, 3),
                          "peak_memory": round(memory, 3)}))  # fmt: skip
        slow |= speed < 1.2
    return int(slow)


def _measure(who: str, size: str) -> dict[str, float]:
    found = {"ours": ours, "theirs": theirs}[who](size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = ROWS * LENGTH / found["step_seconds"]
    return {**found, "tokens_per_second": round(rate, 1), "peak_mb": round(peak)}


def _in_process(who: str, size: str) -> dict[str, float]:
    environment = {**os.environ, MALLOC: LARGE_PAGES}
    command = [sys.executable, __file__, "--one", who, "--size", size]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
