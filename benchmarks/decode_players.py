"""The processes that take turns in `benchmarks/decode.py`: each prepares itself, then measures.

    python benchmarks/decode_players.py '{"who": ...}'   # a turn for each line of standard input

Each uses two threads. Prints one JSON object when it is ready, and one for each turn.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from decode_device import shares, span_lengths

THREADS = 2
OPPONENTS = ("dynamic", "static", "compiled")  # caches of `transformers`
# layers, embed, heads, kv_heads, head_dim, mlp, ids
SIZES = {
    "88M": (12, 768, 12, 4, 64, 2048, 16_384),
    "quickstart": (4, 128, 4, 4, 32, 336, 896),  # its text-to-token model
    "tiny": (2, 64, 4, 2, 16, 96, 600),
}
CODES = 512  # and `end_of_speech`: the last ids of the small sizes, all that is said
Turn = Callable[[], dict[str, Any]]


def play(case: dict[str, Any]) -> None:
    """Runs in a player's process: answers each line of the standard input with a turn's figures."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    began = time.perf_counter()
    turn, ready = PLAYERS[case["who"]](case)
    print(json.dumps({**ready, "ready_seconds": round(time.perf_counter() - began, 1)}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(turn()), flush=True)


def our_model(size: str) -> Any:
    """Returns our config of a size."""
    from speechlm_jax.nn.language_model import LanguageModelConfig
    from speechlm_jax.nn.transformer import TransformerConfig

    *stack, ids = SIZES[size]
    return LanguageModelConfig(ids, TransformerConfig(*stack), tied=True)


def our_params(size: str) -> Any:
    """Returns random parameters of a size."""
    import jax

    from speechlm_jax.nn.language_model import functional

    return jax.jit(functional(our_model(size)).init)(jax.random.key(0))[0]


def make_prompts(case: dict[str, Any]) -> list[list[int]]:
    """Returns prompts of random ids; a smaller batch has the first of a larger one's."""
    import numpy as np

    random = np.random.default_rng(0)
    return random.integers(0, case["ids"], (case["batch"], case["prompt"])).tolist()


def weights_player(case: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    """Writes the folder of a random Qwen2."""
    import torch
    import transformers

    layers, embed, heads, kv_heads, head_dim, mlp, ids = SIZES[case["size"]]
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=ids, hidden_size=embed, intermediate_size=mlp, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
            tie_word_embeddings=True, max_position_embeddings=4096,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers." in name and weight.ndim == 2:
                weight.mul_(3)  # else a tied model repeats the last id
    model.save_pretrained(case["folder"])
    return dict, {"parameters": sum(weight.numel() for weight in model.parameters())}


def ours_player(case: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    """Our engine on the folder's weights."""
    from speechlm_jax.convert.language_model import read_config, read_params
    from speechlm_jax.convert.safetensors_folder import Folder
    from speechlm_jax.nn.inference import GenerateRequest, Inference
    from speechlm_jax.nn.sampling import GREEDY, Sampling

    folder = Folder(Path(case["folder"]))
    family, config = read_config(folder)
    params = read_params(folder, family, config, where=case["folder"])
    prompts, new = make_prompts(case), case["new"]
    length = case["prompt"] + new
    inference = Inference(config, params, batch_size=case["batch"], length=length)
    requests = [
        GenerateRequest(prompt, max_new=new, seed=number) for number, prompt in enumerate(prompts)
    ]

    def generate(sampling: Sampling) -> tuple[float, list[list[int]]]:
        began = time.perf_counter()
        replies = inference.generate(requests, sampling=sampling)
        return round(case["batch"] * new / (time.perf_counter() - began), 2), replies

    sampled = Sampling(0.8, top_p=0.9)
    generate(sampled)
    _, replies = generate(GREEDY)
    return lambda: {
        "greedy": generate(GREEDY)[0], "sampled": generate(sampled)[0],
    }, {"replies": replies}  # fmt: skip


def theirs_player(case: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    """`transformers` on the folder's weights; `who` says with which cache."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    model = transformers.Qwen2ForCausalLM.from_pretrained(case["folder"], dtype=torch.float32)
    model = model.eval().requires_grad_(False)
    prompts, new = torch.tensor(make_prompts(case)), case["new"]
    if case["who"] != "dynamic":
        model.generation_config.cache_implementation = "static"
    if case["who"] == "compiled":
        torch._inductor.config.freezing = True  # weights are laid out for the matrix library
        # A prompt and a step are two shapes, and nothing else changes.
        model.forward = torch.compile(model.forward, dynamic=False)

    def generate(**sampling: Any) -> tuple[float, list[list[int]]]:
        torch.manual_seed(0)
        began = time.perf_counter()
        with torch.inference_mode():
            ids = model.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new,
                min_new_tokens=new, eos_token_id=None, **sampling,
            )  # fmt: skip
        return round(case["batch"] * new / (time.perf_counter() - began), 2), ids[
            :, case["prompt"] :
        ].tolist()

    sampled = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0}
    generate(**sampled)
    _, replies = generate(do_sample=False)
    return lambda: {
        "greedy": generate(do_sample=False)[0], "sampled": generate(**sampled)[0],
    }, {"replies": replies}  # fmt: skip


def sayable(size: str) -> tuple[int, int]:
    """Returns the ids that can be said, as a range."""
    ids = SIZES[size][-1]
    return (0, ids) if size == "88M" else (ids - CODES - 1, ids)


def slots_player(case: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    """Our engine on spans."""
    from speechlm_jax.id_set import IdSet
    from speechlm_jax.nn.inference import GenerateRequest, Inference
    from speechlm_jax.nn.sampling import Sampling

    size, allowed = case["size"], IdSet((sayable(case["size"]),))
    inference = Inference(
        our_model(size), our_params(size), batch_size=case["at_once"],
        vocab_subset=None if size == "88M" else allowed,
    )  # fmt: skip
    requests = [
        GenerateRequest(range(prompt), allowed, (), codes, seed=number)
        for number, (prompt, codes, _) in enumerate(span_lengths(case["requests"]))
    ]

    def turn() -> dict[str, Any]:
        before = dataclasses.asdict(inference.stats)
        began = time.perf_counter()
        replies = inference.generate(requests, sampling=Sampling(0.5))
        took = time.perf_counter() - began
        stats = {
            name: value - before[name]
            for name, value in dataclasses.asdict(inference.stats).items()
        }
        return {"ids_per_second": round(sum(map(len, replies)) / took, 1), **shares(stats)}

    turn()
    return turn, {}


def batches_player(case: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    """What was before, on the same spans."""
    import numpy as np
    from decode_baseline import Batches, Request

    size = case["size"]
    model = Batches(our_model(size), our_params(size), batch_size=case["at_once"])
    allowed = np.zeros(SIZES[size][-1], bool)
    allowed[slice(*sayable(size))] = True
    requests = [
        Request(range(prompt), codes, limit, seed=number)
        for number, (prompt, codes, limit) in enumerate(span_lengths(case["requests"]))
    ]

    def turn() -> dict[str, Any]:
        began = time.perf_counter()
        replies = model.generate(requests, allowed, temperature=0.5)
        rate = sum(map(len, replies)) / (time.perf_counter() - began)
        return {"ids_per_second": round(rate, 1), "busy": round(model.busy / model.slot_steps, 4)}

    turn()
    return turn, {}


def chat_player(case: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    """One slot that answers in turns."""
    from speechlm_jax.nn.inference import GenerateRequest, Inference, Session

    size, reply = case["size"], 48
    inference = Inference(our_model(size), our_params(size), batch_size=1, length=1024)

    def ask(number: int, max_new: int, session: Session | None = None) -> list[float]:
        """Returns when each id came (milliseconds)."""
        began = time.perf_counter()
        prompt = [(7 * place) % SIZES[size][-1] for place in range(number)]
        stream = inference.generate_stream(
            [GenerateRequest(prompt, max_new=max_new, session=session)]
        )
        return [(time.perf_counter() - began) * 1e3 for _ in stream]

    def turn() -> dict[str, Any]:
        came = ask(64, reply)
        gaps = sorted(b - a for a, b in zip(came, came[1:], strict=False))
        found = {
            "first_id_ms": came[0], "between_ids_ms": (came[-1] - came[0]) / (reply - 1),
            "longest_gap_ms": gaps[-1],
        }  # fmt: skip
        for context, new in ((64, 64), (512, 16), (512, 64), (512, 256)):
            with inference.session() as session:
                ask(context, 8, session)
                found[f"session_{context}_then_{new}_ms"] = ask(new, 1, session)[0]
        found["again_512_then_64_ms"] = ask(512 + 8 + 64, 1)[0]
        return {name: round(value, 2) for name, value in found.items()}

    turn()
    return turn, {}


PLAYERS: dict[str, Callable[[dict[str, Any]], tuple[Turn, dict[str, Any]]]] = {
    "weights": weights_player, "ours": ours_player, **dict.fromkeys(OPPONENTS, theirs_player),
    "slots": slots_player, "batches": batches_player, "chat": chat_player,
}  # fmt: skip

if __name__ == "__main__":
    play(json.loads(sys.argv[1]))
