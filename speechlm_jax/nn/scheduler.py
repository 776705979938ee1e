"""Requests -> slots: which request goes where and when, and the ids as they come.

The host side of decoding. It keeps a queue, refills slots as they become free, and reads one small
report for each call of `Engine.advance`.
"""

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from statistics import median

from speechlm_jax.arrays import Array
from speechlm_jax.errors import UserError
from speechlm_jax.id_set import IdSet
from speechlm_jax.nn.engine import MAX_STEPS, RULES, Engine, Entry, Report, unpack
from speechlm_jax.nn.sampling import Sampling

HOST_SHARE = 0.05  # of the time, that the host may take
logger = logging.getLogger("speechlm.decode")


@dataclasses.dataclass(eq=False)
class Kept:
    """What a slot keeps between the requests of a session.

    Attributes:
      slot: None until the first request is begun.
      ids: of the dialogue so far.
      filled: how many of them the slot's cache is known to hold; never the last.
    """

    slot: int | None = None
    ids: list[int] = dataclasses.field(default_factory=list)
    filled: int = 0


@dataclasses.dataclass(eq=False)
class Job:
    """A request on its way, and its reply so far.

    Attributes:
      number: of the request, as the caller counts.
      ids: the whole prompt, what a session keeps included.
      kept: of its session; None: its slot is given back when it ends.
    """

    number: int
    ids: list[int]
    allowed: IdSet
    stops: tuple[int, ...]
    limit: int
    seed: int
    sampling: Sampling
    kept: Kept | None = None
    reply: list[int] = dataclasses.field(default_factory=list)
    slot: int = -1

    @property
    def rule(self) -> tuple[IdSet, tuple[int, ...]]:
        """What tells its rule from others."""
        return self.allowed, self.stops

    @property
    def start(self) -> int:
        """How many of its ids the slot's cache holds already."""
        return self.kept.filled if self.kept else 0

    @property
    def has_slot(self) -> bool:
        """Whether its session holds a slot already."""
        return self.kept is not None and self.kept.slot is not None


@dataclasses.dataclass
class Stats:
    """What decoding did so far.

    Attributes:
      ids: of all replies.
      steps, slot_steps, busy: steps of the device; times slots; of these, those of a request.
      waiting_slot_steps, waiting_busy: the same of calls during which requests waited.
      calls, reads: calls of `Engine.advance` and of `Engine.read`.
      searched: choices that had to search all ids.
      host_seconds, seconds: of the host's own work, and from begin to end.
    """

    ids: int = 0
    steps: int = 0
    slot_steps: int = 0
    busy: int = 0
    waiting_slot_steps: int = 0
    waiting_busy: int = 0
    calls: int = 0
    reads: int = 0
    searched: int = 0
    host_seconds: float = 0.0
    seconds: float = 0.0


class Pace:
    """Steps a call, so that the host takes less than `HOST_SHARE` of the time."""

    def __init__(self, steps: int | None):
        self._fixed = steps
        self._host: deque[float] = deque(maxlen=32)
        self._step: deque[float] = deque(maxlen=32)

    @property
    def steps(self) -> int:
        """Steps of the next call."""
        if self._fixed is not None:
            return self._fixed
        if not self._step:
            return 1
        wanted = median(self._host) / (HOST_SHARE * max(median(self._step), 1e-9))
        return min(MAX_STEPS, max(1, round(wanted + 0.5)))

    def saw(self, *, host: float, device: float, steps: int) -> None:
        """Notes the seconds of a call."""
        if steps:
            self._host.append(host)
            self._step.append(device / steps)


class Scheduler:
    """Answers jobs with an engine."""

    def __init__(self, engine: Engine, *, steps_per_call: int | None = None, overlap: bool = False):
        """Takes the engine over.

        Args:
          steps_per_call: at most `MAX_STEPS`; None: as few as keep the host's share small.
          overlap: whether the device is given its next call before the last one's report is read.
        """
        self.engine = engine
        self.stats = Stats()
        self.pace = Pace(steps_per_call)
        self._lookahead = 1 if overlap else 0
        self._free = list(range(engine.slots))
        self._held: set[int] = set()  # by sessions
        self._waiting: deque[Job] = deque()
        self._answering: dict[int, Job] = {}
        self._rules: dict[tuple, int] = {}

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[int, int], None, None]:
        """Takes jobs; returns (number of the request, id of its reply) as they come.

        To close what it returns, or to drop it, ends the replies.

        Raises:
          UserError: other jobs are not answered yet.
        """
        if self._waiting or self._answering:
            raise UserError("an earlier stream of replies is open; read it to its end, or close it")
        ids = self._answer(jobs)
        next(ids)  # the jobs wait; from here on the generator ends them when it is closed
        return ids

    def _answer(self, jobs: Sequence[Job]) -> Generator[tuple[int, int], None, None]:
        for job in sorted(jobs, key=lambda job: not job.has_slot):
            if job.limit:
                self._waiting.append(job)
            elif job.kept is not None:
                job.kept.ids = job.ids
        begun = time.perf_counter()
        told: deque = deque()
        try:
            yield -1, -1
            while self._waiting or self._answering:
                at = time.perf_counter()
                self._fill()
                report = self.engine.advance(self.pace.steps, self._leave())
                told.append((report, dict(self._answering), bool(self._waiting)))
                if len(told) > self._lookahead:
                    report, asked, waited = told.popleft()
                    yield from self._take(report, asked, at, waiting=waited)
        finally:
            for job in [*self._waiting, *self._answering.values()]:
                self.cancel(job)
            self.stats.seconds += time.perf_counter() - begun
            logger.debug("%s; %d steps a call", self.stats, self.pace.steps)

    def slots_agree(self, sayable: IdSet) -> bool:
        """Fills every slot with one request; returns whether all say the same, and warns if not.

        Kernels for accelerators are chosen by their time, and equal rows of a batch have differed.
        """
        prompt = [sayable.to_array()[0].item()] * 2
        jobs = [
            Job(number, prompt, sayable, (), min(16, self.engine.length - 2), 0, Sampling(1.0))
            for number in range(self.engine.slots)
        ]
        for _ in self.run(jobs):
            pass
        replies = [job.reply for job in jobs]
        usual = max(replies, key=replies.count)
        odd = sorted(job.slot for job in jobs if job.reply != usual)
        if odd:
            logger.warning("slots %s say other ids than the rest to one request", odd)
        self.stats = Stats()
        return not odd

    def cancel(self, job: Job) -> None:
        """Ends the reply to a job, if it has not ended; ids that are on their way are dropped."""
        if job in self._waiting:
            self._waiting.remove(job)
            if job.kept is not None:
                job.kept.ids = job.ids
        elif self._answering.get(job.slot) is job:
            self._end(job)

    @property
    def unkept(self) -> int:
        """Slots that no session holds."""
        return self.engine.slots - len(self._held)

    def forget(self, kept: Kept) -> None:
        """Gives a session's slot back; ends a reply that is on its way."""
        for job in [*self._waiting, *self._answering.values()]:
            if job.kept is kept:
                self.cancel(job)
        if kept.slot is not None:
            self._held.discard(kept.slot)
            self._free.append(kept.slot)
        kept.slot, kept.ids, kept.filled = None, [], 0

    def _leave(self) -> int:
        """How many slots must end before a call comes back early."""
        if not self._waiting:
            return self.engine.slots + 1
        return max(1, min(self.engine.rows, len(self._waiting)) - len(self._free))

    def _fill(self) -> None:
        """Gives waiting jobs to free slots, if there are enough of both for a call."""
        enough = min(self.engine.rows, len(self._waiting))
        while self._waiting and (
            len(self._free) >= enough or self._waiting[0].has_slot or not self._answering
        ):
            group = self._group()
            if not group:
                return
            self.engine.read([self._last_entry(job) for job in group])
            self.stats.reads += 1
            enough = min(self.engine.rows, len(self._waiting))

    def _group(self) -> list[Job]:
        """The next jobs of one padded length, each with a slot and a rule."""
        group: list[Job] = []
        passed: list[Job] = []
        bucket = self._bucket(self._waiting[0])
        while self._waiting and len(group) < self.engine.rows:
            job = self._waiting.popleft()
            if self._bucket(job) != bucket:
                passed.append(job)
            elif self._begin(job):
                group.append(job)
            else:
                passed.append(job)
                break
        self._waiting.extendleft(reversed(passed))
        return group

    def _bucket(self, job: Job) -> int:
        """The padded length of the last part of a job's prompt."""
        return self.engine.bucket((len(job.ids) - job.start - 1) % self.engine.buckets[-1] + 1)

    def _begin(self, job: Job) -> bool:
        """Finds a slot and a rule for a job; False if there is none now."""
        if (not job.has_slot and not self._free) or not self._find_rule(job):
            return False
        if job.kept is None:
            job.slot = self._free.pop(0)
        else:
            if job.kept.slot is None:
                job.kept.slot = self._free.pop(0)
            job.slot = job.kept.slot
            self._held.add(job.slot)
        self._answering[job.slot] = job
        return True

    def _find_rule(self, job: Job) -> bool:
        """Gives a job's rule a row of the engine's table; False if all are in use."""
        if job.rule in self._rules:
            return True
        row = len(self._rules)
        if row == RULES:
            used = {other.rule for other in self._answering.values()}
            idle = next((rule for rule in self._rules if rule not in used), None)
            if idle is None:
                return False
            row = self._rules.pop(idle)
        mask = job.allowed.mask(self.engine.config.vocab_size)
        self.engine.set_rule(row, mask, job.stops)
        self._rules[job.rule] = row
        return True

    def _last_entry(self, job: Job) -> Entry:
        """Reads all but the last part of a prompt; returns the entry of the last."""
        size = self.engine.buckets[-1]  # that a call of `read` takes at most
        *before, last = range(job.start, len(job.ids), size)
        for start in before:
            part = job.ids[start : start + size]
            self.engine.read([self._entry(job, start, part, starts=False)])
            self.stats.reads += 1
        return self._entry(job, last, job.ids[last:], starts=True)

    def _entry(self, job: Job, start: int, ids: Sequence[int], *, starts: bool) -> Entry:
        return Entry(
            job.slot, start, ids, starts, job.limit, self._rules[job.rule], job.seed, job.sampling
        )

    def _take(
        self, report: Array, asked: dict[int, Job], begun: float, *, waiting: bool
    ) -> Iterator[tuple[int, int]]:
        """Hands out what a call has found."""
        waits = time.perf_counter()
        found = unpack(report)
        ready = time.perf_counter()
        # Not those that ended in an earlier report, or were cancelled.
        jobs = [job for job in asked.values() if self._answering.get(job.slot) is job]
        said = [
            (job, number)
            for job in jobs
            for number in found.ids[job.slot, : found.steps].tolist()
            if number >= 0
        ]
        self._count(found, len(said), waiting=waiting)
        host = waits - begun + time.perf_counter() - ready
        self.stats.host_seconds += host
        self.pace.saw(host=host, device=ready - waits, steps=found.steps)
        for job, number in said:
            if self._answering.get(job.slot) is job:  # the caller may have cancelled it
                job.reply.append(number)
                yield job.number, number
        for job in jobs:
            if not found.active[job.slot] and self._answering.get(job.slot) is job:
                self._end(job)

    def _count(self, found: Report, ids: int, *, waiting: bool) -> None:
        stats = self.stats
        stats.ids += ids
        stats.calls += 1
        stats.steps += found.steps
        stats.slot_steps += found.steps * self.engine.slots
        stats.busy += found.busy
        if waiting:
            stats.waiting_slot_steps += found.steps * self.engine.slots
            stats.waiting_busy += found.busy
        stats.searched += found.searched

    def _end(self, job: Job) -> None:
        """Frees a job's slot, or leaves it to its session."""
        del self._answering[job.slot]
        if job.kept is None:
            self._free.append(job.slot)
            return
        job.kept.ids = [*job.ids, *job.reply]
        # Each id but the last of a reply was read to find the next one.
        job.kept.filled = len(job.kept.ids) - 1
