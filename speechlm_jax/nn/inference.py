"""A trained language model that answers requests: replies, streams of ids, dialogues and scores."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from speechlm_jax.arrays import Array, PyTree
from speechlm_jax.errors import UserError
from speechlm_jax.id_set import IdSet
from speechlm_jax.nn import decoding_params, scoring
from speechlm_jax.nn.engine import MAX_STEPS, Engine
from speechlm_jax.nn.language_model import LanguageModelConfig, functional
from speechlm_jax.nn.sampling import GREEDY, Sampling
from speechlm_jax.nn.scheduler import Job, Kept, Scheduler, Stats
from speechlm_jax.padding import round_up, run_in_batches
from speechlm_jax.sharding import in_scope, row_shards

SCORED_TOKENS = 4096  # whose logits are made at once
LEAST_LENGTH = 128  # ids of a slot, where none is given


@dataclasses.dataclass(frozen=True, eq=False)
class GenerateRequest:
    """Continue `prompt`.

    Attributes:
      prompt: ids, at least one; in a session that has some, none goes on with its last reply.
      allowed: the ids that may be said, stop ids included; None: all that the model can say.
      stops: ids that end the reply; they are not part of it.
      max_new: longest reply; None: until a stop id comes, or the slot is full.
      seed: of this request alone; its reply depends on no other request.
      sampling: None: that of the call.
      session: a dialogue that `prompt` goes on with; None: it is the whole context.
    """

    prompt: Sequence[int]
    allowed: IdSet | None = None
    stops: tuple[int, ...] = ()
    max_new: int | None = None
    seed: int = 0
    sampling: Sampling | None = None
    session: "Session | None" = None


@dataclasses.dataclass(frozen=True)
class ScoreRequest:
    """Give the log-probability of `continuation` after `prompt`."""

    prompt: Sequence[int]
    continuation: Sequence[int]


class ReplyStream:
    """Replies as they come: yields (number of the request, id of its reply).

    A request whose reply is empty yields nothing. `close` ends the replies that are not complete.
    """

    def __init__(self, scheduler: Scheduler, jobs: Sequence[Job]):
        self._scheduler = scheduler
        self._jobs = {job.number: job for job in jobs}
        self._ids = scheduler.run(jobs)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self

    def __next__(self) -> tuple[int, int]:
        return next(self._ids)

    def cancel(self, number: int) -> None:
        """Ends the reply to a request: no id of it comes after this."""
        self._scheduler.cancel(self._jobs[number])

    def close(self) -> None:
        """Ends all replies."""
        self._ids.close()


class Session:
    """A dialogue whose context stays on the device: each request goes on from the one before.

    The same as sending everything again, but only new ids are read. It holds a slot from its first
    request until `close`.
    """

    def __init__(self, inference: "Inference"):
        self.kept = Kept()
        self.inference = inference

    @property
    def ids(self) -> list[int]:
        """The dialogue so far: prompts and replies."""
        return list(self.kept.ids)

    def close(self) -> None:
        """Gives the slot back and forgets the dialogue."""
        self.inference.forget(self)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Inference:
    """A trained language model that answers requests.

    For one config, weights, dtype, kind of device and number of slots, a reply depends on its own
    request alone: not on its slot, on who else is answered, or on the order (docs/decoding.md).
    """

    def __init__(
        self,
        config: LanguageModelConfig,
        params: PyTree,
        *,
        batch_size: int = 64,
        length: int | None = None,
        vocab_subset: IdSet | None = None,
        int8_weights: bool = False,
        int8_cache: bool = False,
        steps_per_call: int | None = None,
        multiple: int = 16,
        mesh: Mesh | None = None,
    ):
        """Takes a model's parameters.

        Args:
          batch_size: slots: requests that are answered at once; rounded up to what divides over
            the mesh.
          length: ids of prompt and reply that a slot has room for; None: what the requests need,
            which compiles again whenever they need more.
          vocab_subset: the only ids that are ever said: the output layer is cut to them.
          int8_weights, int8_cache: whether replies are made with weights, and with kept keys and
            values, in int8: half the bytes of bfloat16, slightly other replies (docs/decoding.md).
          steps_per_call: see `Scheduler`.
          multiple: scored rows are padded to multiples of it.
          mesh: devices over which slots and weights are split; None: one device.

        Raises:
          UserError: an argument with which nothing can be answered.
        """
        if batch_size < 1 or (length is not None and length < 2):
            raise UserError(f"{batch_size} slots of {length} ids hold no request")
        if steps_per_call is not None and not 1 <= steps_per_call <= MAX_STEPS:
            raise UserError(f"steps_per_call: {steps_per_call} is not in 1 to {MAX_STEPS}")
        sayable = IdSet(((0, config.vocab_size),)) if vocab_subset is None else vocab_subset
        if not len(sayable) or sayable.end > config.vocab_size:
            raise UserError(
                f"vocab_subset: has {len(sayable)} ids, below {sayable.end}; the vocabulary has "
                f"{config.vocab_size}"
            )
        self.config = config
        self._params = params
        self._slots = round_up(batch_size, row_shards(mesh))
        self._length = length
        self._sayable = sayable
        self._steps = steps_per_call
        self._int8_cache = int8_cache
        self._multiple = multiple
        self._mesh = mesh
        self._weights = decoding_params.prepare(
            config, params, int8=int8_weights, mesh=mesh,
            transposed=jax.default_backend() == "cpu",
            vocab_subset=None if vocab_subset is None else vocab_subset.to_array(),
        )  # fmt: skip
        self._scheduler: Scheduler | None = None

    @property
    def slots(self) -> int:
        """Requests that are answered at once."""
        return self._slots

    @property
    def stats(self) -> Stats:
        """What was done since the slots were made."""
        return self._scheduler.stats if self._scheduler else Stats()

    def session(self) -> Session:
        """Begins a dialogue; name it in each of its requests."""
        return Session(self)

    def generate(
        self, requests: Sequence[GenerateRequest], *, sampling: Sampling = GREEDY
    ) -> list[list[int]]:
        """Returns the reply to each request, stop id left out.

        Raises:
          UserError: a request cannot be answered; nothing was run.
        """
        replies: list[list[int]] = [[] for _ in requests]
        with contextlib.closing(self.generate_stream(requests, sampling=sampling)) as stream:
            for number, id_ in stream:
                replies[number].append(id_)
        return replies

    def generate_stream(
        self, requests: Sequence[GenerateRequest], *, sampling: Sampling = GREEDY
    ) -> ReplyStream:
        """Returns the ids of all replies as they come; see `generate`."""
        check = partial(
            make_job, sampling=sampling, vocab_size=self.config.vocab_size,
            sayable=self._sayable, length=self._length,
        )  # fmt: skip
        jobs = [check(number, request) for number, request in enumerate(requests)]
        for number, request in enumerate(requests):
            if request.session is not None and request.session.inference is not self:
                raise UserError(f"request {number}: its session is one of another model")
        kept = [job.kept for job in jobs if job.kept is not None]
        if len(kept) != len(set(map(id, kept))):
            raise UserError("two requests go on with one session; send one after the other")
        return ReplyStream(self._ready(jobs), jobs)

    def score(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """Returns the log-probability (nats) of each continuation after its prompt."""
        score = _score_program(self.config)

        def run(numbers: np.ndarray, ids: np.ndarray, lengths: np.ndarray) -> list[float]:
            starts = np.array([len(requests[i].prompt) for i in numbers], np.int32)
            with in_scope(self._mesh):
                return np.asarray(score(self._params, ids, lengths, starts)).tolist()

        rows = [[*request.prompt, *request.continuation] for request in requests]
        sizes = [round_up(max(1, len(row)), self._multiple) for row in rows]
        at_once = {size: self._scored_rows(number, size) for size, number in Counter(sizes).items()}
        return run_in_batches(rows, run, batch_size=at_once, multiple=self._multiple, kinds=sizes)

    def _scored_rows(self, number: int, size: int) -> int:
        """Rows of this size that are scored at once: a power of two, of limited tokens."""
        most = max(1, SCORED_TOKENS // size)
        rows = min(1 << (number - 1).bit_length(), most)
        return round_up(rows, row_shards(self._mesh))

    def _ready(self, jobs: Sequence[Job]) -> Scheduler:
        """Slots that are long enough."""
        needed = max((len(job.ids) + job.limit for job in jobs), default=1)
        if self._scheduler is None or self._scheduler.engine.length < needed:
            if (
                self._scheduler is not None
                and self._scheduler.unkept < self._scheduler.engine.slots
            ):
                raise UserError(
                    f"a request needs {needed} ids, and the slots that sessions hold have room for "
                    f"{self._scheduler.engine.length}; give `length`"
                )
            self._scheduler = None  # its cache is given back before the next is made
            length = self._length or max(LEAST_LENGTH, 1 << (needed - 1).bit_length())
            engine = Engine(
                self._weights, slots=self._slots, length=length, int8_cache=self._int8_cache,
                mesh=self._mesh,
            )  # fmt: skip
            on_cpu = jax.default_backend() == "cpu"
            self._scheduler = Scheduler(engine, steps_per_call=self._steps, overlap=not on_cpu)
            if not on_cpu:
                self._scheduler.slots_agree(self._sayable)
        new = sum(job.kept is not None and job.kept.slot is None for job in jobs)
        plain = any(job.kept is None for job in jobs)
        if new + plain > self._scheduler.unkept:
            raise UserError(
                f"{new} sessions begin{', and others need a slot too' if plain else ''}: "
                f"{self._scheduler.unkept} slots are not held by sessions; "
                "close sessions, or give a larger batch_size"
            )
        return self._scheduler

    def forget(self, session: Session) -> None:
        """Gives a session's slot back; see `Session.close`."""
        if self._scheduler is not None:
            self._scheduler.forget(session.kept)


def make_job(
    number: int,
    request: GenerateRequest,
    *,
    sampling: Sampling,
    vocab_size: int,
    sayable: IdSet,
    length: int | None,
) -> Job:
    """Checks a request and completes it from what is true of all.

    Args:
      number: names the request in errors.
      sayable: the ids that the model can say.
      length: room of a slot; None: as much as is needed.

    Raises:
      UserError: nothing can answer it.
    """
    kept = request.session.kept if request.session else None
    ids = [*(kept.ids if kept else ()), *map(int, request.prompt)]
    allowed = sayable if request.allowed is None else request.allowed
    limit = request.max_new
    if limit is None and request.stops and length is not None:
        limit = length - len(ids)
    foreign = next((i for i in (*ids, *request.stops) if not 0 <= i < vocab_size), None)

    def refuse(why: str) -> UserError:
        return UserError(f"request {number}: {why}")

    if not ids:
        raise refuse("its prompt is empty")
    if foreign is not None:
        raise refuse(f"id {foreign} is not in the vocabulary, which has {vocab_size}")
    if not len(allowed):
        raise refuse("no ids are allowed")
    if not allowed <= sayable:
        raise refuse("ids are allowed that the model cannot say (vocab_subset, vocabulary)")
    if request.max_new is None and not request.stops:
        raise refuse("it has no stop id and no limit; give max_new")
    if limit is None:
        raise refuse("it has no limit, and the slots have no length; give max_new, or length")
    if limit < 0 or (limit < 1 and request.max_new is None):
        raise refuse(f"{len(ids)} ids of prompt and {limit} new ones: nothing can be said")
    if length is not None and len(ids) + limit > length:
        raise refuse(
            f"{len(ids)} ids of prompt and up to {limit} new ones do not fit a slot of {length}"
        )
    if not 0 <= request.seed < 2**32:
        raise refuse(f"its seed is {request.seed}; give one from 0 to 2**32 - 1")
    stops = tuple(sorted(set(request.stops)))
    used = request.sampling or sampling
    return Job(number, ids, allowed, stops, limit, request.seed, used, kept)


@lru_cache(maxsize=8)
def _score_program(config: LanguageModelConfig) -> Callable[..., Array]:
    """Compiled scores, shared by all models of one config."""
    model = functional(config)

    @jax.jit
    def score(params: PyTree, ids: Array, lengths: Array, starts: Array) -> Array:
        places = jnp.arange(ids.shape[1])[None]
        counted = (places >= starts[:, None]) & (places < lengths[:, None])
        return scoring.score(model.bind(params), ids, lengths, counted)

    return score
