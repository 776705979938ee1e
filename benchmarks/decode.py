"""Decoding compared: with `transformers`, with ours before the engine of slots, and with the bound.

    python benchmarks/decode.py                     # all of a CPU's parts
    python benchmarks/decode.py --only mixed --turns 3 --requests 128
    python benchmarks/decode.py --only device       # one GPU or TPU; as in benchmarks/gpu.py
    python benchmarks/decode.py --tiny              # small shapes, for a trial on any machine

The parts, all with random weights and, but for `device`, float32 on two threads:

- transformers: a Qwen2 of 88M parameters, prompt 64 + 64 new, one request and 16. Both read the
  same weights; first they must give the same greedy ids on 16 prompts. The opponent is the fastest
  of `generate()` with a dynamic cache, a static one, and a static one compiled by torch. Bars: 1.3
  times its ids a second for one request, 2 for 16.
- mixed: spans of Poisson(10) words as text-to-token speaks them, one in 50 to its limit, against
  whole batches (`decode_baseline.py`), 64 at once. Bars: 3 times its ids a second; slots are busy
  90% of the time while requests wait.
- chat: time to the first id and between ids of one request, and the first id of a second turn,
  with a session and without. Bar: with a session it takes no longer in a long dialogue.
- device: a bound from the card's measured rates, what is reached, and a profile.

Players are processes of their own that stay, compile first and then take turns. A figure is the
median of the turns, with the least and the most. Prints one JSON object for each turn and each
result; ends with exit code 1 if a bar is missed.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from operator import eq
from pathlib import Path
from typing import Any

from decode_players import OPPONENTS, SIZES, THREADS

ROOT = Path(__file__).resolve().parents[1]
PLAYERS = ROOT / "benchmarks/decode_players.py"
BARS = {1: 1.3, 16: 2.0}  # by requests at once


class Player:
    """A process that measures one turn when it is asked."""

    def __init__(self, case: dict[str, Any]):
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, str(PLAYERS), json.dumps(case)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(THREADS)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.who = case["who"]
        self.ready = self._answer()

    def turn(self) -> dict[str, Any]:
        """Returns what a turn measured."""
        with contextlib.suppress(BrokenPipeError):  # it has died, as its answer says
            print(file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.close()
        raise SystemExit(f"{self.who}: the process ended with code {self._process.returncode}")


@contextlib.contextmanager
def players(case: dict[str, Any], whos: Sequence[str]) -> Iterator[dict[str, Player]]:
    """Gives players of a case that are ready."""
    with contextlib.ExitStack() as stack:
        found = {}
        for who in whos:
            found[who] = Player({**case, "who": who})
            stack.callback(found[who].close)
        yield found


def take_turns(
    found: dict[str, Player], turns: int, shown: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Lets players take turns; returns each one's."""
    said: dict[str, list[dict[str, Any]]] = {who: [] for who in found}
    order = list(found)
    for turn in range(turns):
        for who in order[turn % len(order) :] + order[: turn % len(order)]:
            said[who].append(found[who].turn())
            tell({**shown, "who": who, **said[who][-1]})
    return said


def tell(line: dict[str, Any]) -> None:
    """Prints a result."""
    print(json.dumps(line), flush=True)


def summary(turns: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """Returns the median, least and most of a figure."""
    values = sorted(turn[name] for turn in turns)
    return {"median": statistics.median(values), "least": values[0], "most": values[-1]}


def ratios(ours: Sequence[dict], theirs: Sequence[dict], name: str, bar: float) -> dict[str, Any]:
    """Returns the ratio of medians, the spread of the turns' ratios, and whether the bar is met."""
    each = [a[name] / b[name] for a, b in zip(ours, theirs, strict=True)]
    ratio = summary(ours, name)["median"] / summary(theirs, name)["median"]
    return {"ratio": round(ratio, 3), "ratios": [round(min(each), 3), round(max(each), 3)],
            "bar": bar, "met": ratio >= bar}  # fmt: skip


def transformers_part(args: argparse.Namespace) -> bool:
    """Compares with `generate()`; returns whether ids and speed are as they should."""
    size = "tiny" if args.tiny else "88M"
    prompt, new = (8, 8) if args.tiny else (64, 64)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        Player({"who": "weights", "size": size, "folder": folder}).close()
        for batch in (16, 1):
            shown = {"part": "transformers", "size": size, "batch": batch}
            case = {"folder": folder, "batch": batch, "ids": SIZES[size][-1], "prompt": prompt,
                    "new": new}  # fmt: skip
            with players(case, ("ours", *OPPONENTS)) as found:
                good &= tell_replies(found, shown)
                turns = take_turns(found, args.turns, shown)
            for sampling in ("greedy", "sampled"):
                rates = {who: summary(of, sampling) for who, of in turns.items()}
                best = max(OPPONENTS, key=lambda who: rates[who]["median"])  # noqa: B023
                bar = BARS[batch] if sampling == "greedy" else 0.0
                line = ratios(turns["ours"], turns[best], sampling, bar)
                tell({**shown, "sampling": sampling, "opponent": best, "ids_per_second": rates,
                      **line})  # fmt: skip
                good &= line["met"]
    return good


def tell_replies(found: dict[str, Player], shown: dict[str, Any]) -> bool:
    """Prints to how many prompts all reply alike, greedily; returns whether it is all."""
    replies = {who: player.ready["replies"] for who, player in found.items()}
    same = {who: sum(map(eq, replies["ours"], replies[who])) for who in OPPONENTS}
    distinct = len({id_ for reply in replies["ours"] for id_ in reply})
    tell({**shown, "same_greedy_replies": same, "distinct_ids": distinct,
          "ready_seconds": {who: player.ready["ready_seconds"] for who, player in found.items()},
          })  # fmt: skip
    return min(same.values()) == len(replies["ours"])


def mixed_part(args: argparse.Namespace) -> bool:
    """Compares with whole batches; returns whether the bars are met."""
    good = True
    sizes = {"tiny": 40} if args.tiny else {"quickstart": args.requests, "88M": args.requests // 4}
    for size, requests in sizes.items():
        case = {"size": size, "requests": requests, "at_once": 8 if args.tiny else 64}
        shown = {"part": "mixed", **case}
        with players(case, ("slots", "batches")) as found:
            ready = {who: player.ready["ready_seconds"] for who, player in found.items()}
            turns = take_turns(found, args.turns, shown)
        line = ratios(turns["slots"], turns["batches"], "ids_per_second", 3.0)
        busy = summary(turns["slots"], "busy_while_waiting")["median"]
        line["met"] &= busy >= 0.9
        tell({**shown, **line, "busy_while_waiting": busy, "busy_bar": 0.9,
              "ids_per_second": {who: summary(of, "ids_per_second") for who, of in turns.items()},
              "busy": {who: summary(of, "busy") for who, of in turns.items()},
              "ready_seconds": ready})  # fmt: skip
        good &= line["met"]
    return good


def chat_part(args: argparse.Namespace) -> bool:
    """Measures a dialogue; returns whether a session's second turn reads only what is new."""
    case = {"size": "tiny" if args.tiny else "88M"}
    with players(case, ("chat",)) as found:
        turns = take_turns(found, args.turns, {"part": "chat", **case})["chat"]
    figures = {name: summary(turns, name) for name in turns[0]}
    long, short = (figures[f"session_{n}_then_64_ms"]["median"] for n in (512, 64))
    ratio = round(long / short, 3)
    tell({"part": "chat", **case, **figures, "longer_dialogue": ratio, "bar": 1.5,
          "met": ratio <= 1.5})  # fmt: skip
    return ratio <= 1.5


def device_part(args: argparse.Namespace) -> bool:
    """Measures an accelerator; returns whether any case was measured."""
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--only", "decode"]
    command += ["--tiny"] if args.tiny else ["--seconds", "1200"]
    return not subprocess.run(command, check=False).returncode


PARTS = {"transformers": transformers_part, "mixed": mixed_part, "chat": chat_part,
         "device": device_part}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the parts; returns exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="default: all but device")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--requests", type=int, default=512, help="of mixed lengths; of 88M a quarter"
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes, on any machine")
    args = parser.parse_args(arguments)
    parts = args.only or [name for name in PARTS if name != "device"]
    return int(not all([PARTS[name](args) for name in parts]))


if __name__ == "__main__":
    sys.exit(main())
