"""The benchmark of decoding (benchmarks/decode.py): its baseline, its lengths and its bars."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from speechlm_jax.id_set import IdSet
from speechlm_jax.lm.presets import preset
from speechlm_jax.nn import decoding_params
from speechlm_jax.nn.inference import GenerateRequest, Inference
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.transformer import TransformerConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import decode  # noqa: E402
import decode_baseline  # noqa: E402
import decode_device  # noqa: E402

sys.path.remove(str(BENCHMARKS))


@pytest.mark.slow
def test_the_baseline_gives_the_replies_of_the_engine():
    config = LanguageModelConfig(40, TransformerConfig(2, 32, 4, 2, 8, 48))
    params = functional(config).init(jax.random.key(0))[0]
    params = jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim > 1 else leaf, params)
    allowed = np.arange(40) % 3 > 0
    lengths = [(3, 6), (9, 1), (14, 4), (5, 6), (1, 2)]
    prompts = [np.arange(7, 7 + prompt).tolist() for prompt, _ in lengths]
    before = decode_baseline.Batches(config, params, batch_size=2)
    found = before.generate(
        [
            decode_baseline.Request(prompt, end, max_new=6)
            for prompt, (_, end) in zip(prompts, lengths, strict=True)
        ],
        allowed,
    )
    now = Inference(config, params, batch_size=2).generate(
        [
            GenerateRequest(prompt, IdSet.of_mask(allowed), max_new=end)
            for prompt, (_, end) in zip(prompts, lengths, strict=True)
        ]
    )
    assert found == now and len({id_ for reply in found for id_ in reply}) > 3
    # Batches of (6, 1), (4, 6) and (2, a copy): each runs as long as its slowest row.
    assert before.slot_steps == 2 * (6 + 6 + 2) and before.busy == 19


def test_lengths_are_those_of_spans():
    lengths = np.array(decode_device.span_lengths(5000))
    prompts, codes, limits = lengths.T
    words = prompts - 4
    assert abs(words.mean() - 10) < 0.2 and words.min() >= 1
    assert limits.tolist() == (9 * words + 1).tolist()
    at_limit = codes == limits
    assert 100 <= at_limit.sum() < 110 and (codes <= limits).all() and codes.min() >= 1
    assert abs((codes / words)[~at_limit].mean() - 4.17) < 0.1  # 4.15 in the quickstart's corpus
    assert decode_device.span_lengths(64) == decode_device.span_lengths(64)


@pytest.mark.parametrize("subset", [65, None])
def test_the_bound_counts_what_a_step_reads(subset):
    config = preset("tiny", vocab_size=512)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), functional(config).shapes)
    ids = None if subset is None else np.arange(subset)
    weights = decoding_params.prepare(config, params, vocab_subset=ids)
    card = {"copy_gb_per_second": 1.0, "product_tflops": 0.001}
    bound = decode_device.bound(weights, 8, 16, card)
    maps = 2 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 192) + 64 * (subset or 512)
    norms = 5 * 64  # float32, all else bfloat16
    cache = 8 * 16 * 2 * 2 * 32
    assert (bound["weight_bytes"], bound["cache_bytes"]) == (2 * maps + 4 * norms, 2 * cache)
    assert bound["flops"] == 8 * (2 * (maps + norms) + 4 * 16 * 2 * 64)
    assert bound["bound_bytes_ms"] == round((2 * maps + 4 * norms + 2 * cache) / 1e6, 3)
    assert bound["bound_flops_ms"] == bound["bound_ms"] == round(bound["flops"] / 1e6, 3)
    assert bound["bound_ids_per_second"] == round(8e9 / bound["flops"])


@pytest.mark.slow
def test_a_device_tells_the_bound_before_what_is_reached(monkeypatch):
    monkeypatch.setattr(decode_device, "MEASURED", 1)
    case = next(decode_device.cases(tiny=True)) | {"slots": [8]}
    card, bound, step, *alike, spans, profile = decode_device.decode(case)
    assert card["copy_gb_per_second"] > 0 and card["product_tflops"] > 0
    assert bound["slots"] == 8 and bound["bound_ms"] > 0
    assert 0 < step["step_ms"] and step["of_bound"] < 1
    assert [line["sampling"] for line in alike] == ["greedy", "temperature", "nucleus"]
    assert all(line["ids_per_second"] > 0 and line["busy"] == 1 for line in alike)
    assert spans["requests"] == "spans" and spans["busy_in_tail"] < spans["busy_while_waiting"]
    assert profile["profile"]


def test_more_slots_than_fit_are_a_line(monkeypatch):
    def measure(weights, slots, case, least):
        if slots == 4:
            raise MemoryError("too many\nslots")
        yield {"ids_per_second": 1.0}

    monkeypatch.setattr(decode_device, "measure", measure)
    case = next(decode_device.cases(tiny=True)) | {"slots": [4, 2]}
    _, _, failed, _, good = decode_device.decode(case)
    assert failed == {"slots": 4, "failed": "MemoryError: too many"}
    assert good == {"slots": 2, "ids_per_second": 1.0}


class Fake:
    """A player that counts its turns."""

    def __init__(self, who, asked):
        self.who, self.asked = who, asked

    def turn(self):
        self.asked.append(self.who)
        return {"ids_per_second": 10.0 * len(self.asked)}


def test_players_take_turns_and_no_one_is_always_first(capsys):
    asked = []
    found = {who: Fake(who, asked) for who in "abc"}
    said = decode.take_turns(found, 3, {"part": "x"})
    assert asked == list("abcbcacab")
    assert [turn["ids_per_second"] for turn in said["a"]] == [10, 60, 80]
    assert capsys.readouterr().out.count('"part": "x"') == 9


def test_a_ratio_is_of_medians_and_has_a_spread():
    ours, theirs = ([{"rate": rate} for rate in rates] for rates in ((3, 4, 9), (2, 4, 3)))
    line = decode.ratios(ours, theirs, "rate", 1.3)
    assert line == {"ratio": 1.333, "ratios": [1.0, 3.0], "bar": 1.3, "met": True}
    assert not decode.ratios(ours, theirs, "rate", 1.4)["met"]


def test_replies_must_be_those_of_every_opponent(capsys):
    players = {
        who: type("Ready", (), {"ready": {"replies": replies, "ready_seconds": 1.0}})
        for who, replies in (
            ("ours", [[1, 2], [3]]), ("dynamic", [[1, 2], [3]]), ("static", [[1, 2], [3]]),
            ("compiled", [[1, 2], [4]]),
        )
    }  # fmt: skip
    assert not decode.tell_replies(players, {})
    assert '"compiled": 1' in capsys.readouterr().out
    players["compiled"].ready["replies"][1] = [3]
    assert decode.tell_replies(players, {})


def test_a_player_that_dies_ends_the_benchmark():
    with pytest.raises(SystemExit, match="nobody: the process ended with code 1"):
        decode.Player({"who": "nobody"})
