"""Broken input for every parser of outside data: each must give a value or a `UserError` in time.

    python benchmarks/fuzz.py                      # a million inputs over all parsers
    python benchmarks/fuzz.py --inputs 1000 --target rows_jsonl --first 5000

Input NUMBER of a target depends only on (seed, target, number), so that every failure can be
reproduced. Each target runs in a process of its own; if a C library ends the process, a new one
continues after that input. Prints a JSON line for each target. Exit code 1 if anything failed.
"""

import argparse
import contextlib
import json
import logging
import mmap
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from fuzz_targets import TARGETS

SECONDS = 1.0  # most CPU seconds of an input
STUCK_SECONDS = 10.0  # most CPU seconds inside a library that no exception can stop
MOST_FAULTS = 20  # most faults that are listed for a target
DIGITS, NESTED = "@digits@", "@nested@"  # placeholders of what json.dumps would not write
ODD_VALUES = [
    *(None, True, False, 0, -1, 1, 2, 255, 65_536, 2**31, 2**32, 2**53, 2**63, -(2**63), 10**300),
    *(0.5, -0.5, 1e308, 1e-320, float("nan"), float("inf"), [], {}, [[]], [None], {"a": {}}),
    *("", " ", "a", "0", "\0", "\n", "\ud800", "\ufeff", "caf\u00e9", "x" * 5000, "..", "/", "~"),
    *("../../etc/passwd", "/dev/null", "[", "*", "gs://a/b", "a/b", "train", "text", "codes"),
    *([0] * 300, {"class": "X"}, DIGITS, NESTED),
]
ODD_BYTES = [
    *(b"", b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80", b"\n", b"\r"),
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"-", b"1e999", b"NaN", b"null", b"9" * 30),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"\\u0000"),
    *(b"\x1f\x8b\x08", b"RIFF", b"fLaC", b"ID3", b"PAR1"),
]


class TooSlow(BaseException):
    """Raised if an input takes more than `SECONDS`."""


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Returns a seed with up to 8 changes, each of its JSON (of one line) or of its bytes."""
    data = rng.choice(seeds)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        is_tree = rng.random() < 0.7
        data = (_mutated_tree(rng, data) if is_tree else None) or _mutated_bytes(rng, data, seeds)
    return data


def _mutated_tree(rng: random.Random, data: bytes) -> bytes | None:
    """Returns JSON, or one line of it, with a value, name or item changed; None if it is none."""
    if data[:1] not in (b"{", b"["):
        return None
    lines = data.splitlines()
    at = rng.randrange(len(lines)) if len(lines) > 1 and lines[0].endswith(b"}") else None
    try:
        tree = json.loads(data if at is None else lines[at])
    except (ValueError, RecursionError):
        return None
    places = list(_places(tree)) if isinstance(tree, (dict, list)) else []
    if not places:
        return None
    node, key = rng.choice(places)
    _change(rng, node, key)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.9)
    text = text.replace(f'"{DIGITS}"', "9" * 5000).replace(f'"{NESTED}"', "[" * 100_000)
    made = text.encode(errors="surrogatepass")
    return made if at is None else b"\n".join([*lines[:at], made, *lines[at + 1 :]])


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every container of a tree with each of its keys."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in items:
        yield node, key
        if isinstance(child, (dict, list)):
            yield from _places(child)


def _change(rng: random.Random, node: Any, key: Any) -> None:
    how = rng.randrange(6)
    if how == 0:
        del node[key]
    elif how == 1 and isinstance(node, dict):
        node[str(rng.choice(ODD_VALUES))] = node[key]
    elif how == 1 or (how == 2 and isinstance(node, list)):
        node.insert(key, rng.choice(ODD_VALUES))
    elif how == 2:
        node[rng.choice(list(node))] = node[key]
    elif how == 3:
        node[key] = [node[key]]
    else:
        node[key] = rng.choice(ODD_VALUES)


def _mutated_bytes(rng: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    """Returns bytes with a part changed, cut out, repeated, or taken from another seed."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64, 1000)))
    how = rng.randrange(8)
    if how == 0 and data:
        at = min(at, len(data) - 1)
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if how == 1:
        return data[:at] + data[end:]
    if how == 2:
        return data[:end] + data[at:end] * rng.choice((1, 2, 50)) + data[end:]
    if how == 3:
        return data[:at]
    if how == 4:
        other = rng.choice(seeds)
        return data[:at] + other[rng.randrange(len(other) + 1) :]
    if how == 5:
        width = rng.choice((1, 2, 4, 8))
        value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), rng.getrandbits(16)))
        order = rng.choice(("little", "big"))
        made = (value % 2 ** (8 * width)).to_bytes(width, order)
        return data[:at] + made + data[at + width :]
    odd = rng.choice(ODD_BYTES)
    return data[:at] + odd + data[at if how == 6 else at + len(odd) :]


def make_input(seed: int, target: str, number: int, seeds: list[bytes]) -> bytes:
    """Returns input `number` of a target."""
    return mutate(random.Random(f"{seed} {target} {number}"), seeds)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raises `TooSlow` if the block takes more than `SECONDS` of CPU time."""

    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def outcome(parse: Callable[[bytes], Any], data: bytes, expected: tuple[type, ...]) -> str:
    """Returns "value", "refused", or one line that describes a fault and its place."""
    start = time.process_time()
    try:
        with limited():
            parse(data)
    except expected as error:
        said = str(error)
        if "\n" in said:
            return f"more than one line: {said[:200]!r}"
    except TooSlow:
        return f"more than {SECONDS:g} s: {_place()}"
    except BaseException as error:
        lines = traceback.extract_tb(error.__traceback__)
        ours = [f for f in lines if "speechlm_jax" in f.filename] or lines
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return f"{type(error).__name__} at {where}: {str(error)[:120]!r}"
    else:
        said = None
    if time.process_time() - start > SECONDS:  # spent in a library that no signal interrupts
        return f"more than {SECONDS:g} s"
    return "value" if said is None else "refused"


def _place() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"


def run_inputs(target: Any, seed: int, numbers: range, told: Callable[[int], None]) -> dict:
    """Gives inputs to a target; returns counts of the outcomes, and each kind of fault once."""
    counts: Counter[str] = Counter()
    faults: dict[str, int] = {}
    with target.opened() as (seeds, parse):
        start = time.process_time()
        for number in numbers:
            told(number)
            data = make_input(seed, target.name, number, seeds)
            found = outcome(parse, data, target.expected)
            if found in ("value", "refused"):
                counts[found] += 1
            else:
                counts["faults"] += 1
                faults.setdefault(found, number)
        seconds = time.process_time() - start
    return {**counts, "cpu_seconds": round(seconds, 1), "found": faults}


def run_target(target: Any, seed: int, first: int, count: int) -> dict:
    """Runs a target's inputs in processes; an input that ends a process counts as a fault."""
    total: Counter[str] = Counter()
    found: dict[str, int] = {}
    at = first
    files = tempfile.TemporaryFile
    with mmap.mmap(-1, 8) as shared, files() as said, files() as made:
        while at < first + count:
            for file in (said, made):
                file.seek(0)
                file.truncate()
            pid = os.fork()
            if not pid:
                _child(target, seed, range(at, first + count), shared, said, made)
            _, status = os.waitpid(pid, 0)
            made.seek(0)
            if answer := made.read():
                result = json.loads(answer)
                found = {**result.pop("found"), **found}
                total.update(result)
                break
            number = int.from_bytes(shared[:8], "little")
            said.seek(0)
            last = (said.read().decode(errors="replace").strip().splitlines() or [""])[-1]
            total.update({"faults": 1})
            found.setdefault(f"the process ended ({status}): {last[:200]}", number)
            at = number + 1
    told = dict(list(found.items())[:MOST_FAULTS])
    return {"target": target.name, "inputs": count, **total, "found": told}


def _child(
    target: Any, seed: int, numbers: range, shared: mmap.mmap, said: Any, made: Any
) -> NoReturn:
    """Gives inputs to a target and ends the process.

    Writes the number of the present input to `shared`, stderr to `said` and the result to `made`.
    """

    def told(number: int) -> None:
        shared[:8] = number.to_bytes(8, "little")
        signal.setitimer(signal.ITIMER_PROF, STUCK_SECONDS)  # ends the process

    logging.disable()
    os.dup2(said.fileno(), 2)
    try:
        made.write(json.dumps(run_inputs(target, seed, numbers, told)).encode())
        made.flush()
    except BaseException:
        traceback.print_exc()
    os._exit(0)


def main() -> int:
    """Runs the targets of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="over all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of each target's first input")
    parser.add_argument("--target", action="append", help="only this one (repeatable)")
    args = parser.parse_args()
    targets = {name: TARGETS[name] for name in args.target or TARGETS}
    shares = sum(target.share for target in targets.values())
    inputs = faults = 0
    for target in targets.values():
        count = -(-args.inputs * target.share // shares)
        result = run_target(target, args.seed, args.first, count)
        inputs, faults = inputs + count, faults + result.get("faults", 0)
        print(json.dumps(result), flush=True)
    print(json.dumps({"inputs": inputs, "faults": faults, "seed": args.seed, "first": args.first}))
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
