"""Before JAX starts: four CPU devices, to test sharding on a laptop, and a compilation cache."""

import ast
import asyncio
import atexit
import dataclasses
import itertools
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from fsspec.asyn import AsyncFileSystem, get_loop

# The other flags halve the time to compile, which is half of the tests' time. XLA ends a process
# that gives it a flag it does not know, so a version that nobody tried goes without.
_FLAGS = ["--xla_force_host_platform_device_count=4"]
if jax.__version_info__ < (0, 11):
    _FLAGS += [
        "--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    ]  # fmt: skip
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# What is compiled runs for milliseconds: most of XLA's optimisations cost more than they give.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
jax.config.update(
    "jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "true"
)

# Many tests build the same small model anew, here or in a process of their own; each is compiled
# once a session.  A path that the caller has set stays.
_cache, _shared = os.environ.get("JAX_COMPILATION_CACHE_DIR"), None
if _cache is None:
    _cache = tempfile.mkdtemp(prefix="speechlm_test_cache_")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"
    # a plugin of pytest may have imported JAX already, which then has not seen the environment
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
elif "PYTEST_XDIST_WORKER" in os.environ:
    # JAX writes its cache in place, so a folder has one writer at a time. Its lock is no way out:
    # it comes with a limit of size, for which each write reads the whole folder (5 of 12 minutes).
    _shared, _cache = _cache, os.path.join(_cache, os.environ["PYTEST_XDIST_WORKER"])
    os.makedirs(_cache, exist_ok=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
jax.config.update("jax_compilation_cache_dir", _cache)
# Else the key of each program would hold the name of the folder, for the sake of XLA's GPU caches.
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


@pytest.fixture(scope="module", autouse=True)
def programs_of_others():
    """Links into this process's folder what others have compiled, now or in an earlier run."""
    if _shared is None:
        return
    whole = time.time() - 5  # nothing that may still be written
    for path in Path(_shared).rglob("*-cache"):
        link = os.path.join(_cache, path.name)
        if not os.path.lexists(link) and path.stat().st_mtime < whole:
            os.link(path, link)


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """The command line sends logs to standard error; the next test wants pytest's handlers back."""
    root, ours = logging.getLogger(), logging.getLogger("speechlm")
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:], root.level, ours.level = before


@pytest.fixture(scope="session")
def count_fetchers():
    """count_fetchers(): threads that fetch rows of a bucket; other tests' threads come and go."""
    from speechlm_jax.data.bucket_rows import THREAD

    return lambda: sum(thread.name == THREAD for thread in threading.enumerate())


@pytest.fixture(scope="session")
def setup_value():
    """setup_value(name): the literal that setup.py assigns to a name."""
    setup = ast.parse((Path(__file__).parents[1] / "setup.py").read_text(encoding="utf-8"))

    def value(name):
        for node in setup.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
                return ast.literal_eval(node.value)
        raise AssertionError(f"setup.py assigns no {name}")

    return value


@pytest.fixture(scope="session")
def real_data():
    """real_data(name): a folder of SPEECHLM_DATA (default: beside the checkout); skips without."""
    data = Path(os.environ.get("SPEECHLM_DATA", Path(__file__).parents[2] / "shared/data"))

    def folder(name):
        if not (data / name).is_dir():
            pytest.skip(f"no {name} in {data}; set SPEECHLM_DATA")
        return data / name

    return folder


@pytest.fixture(scope="session")
def heavy():
    """What a training host goes without."""
    return ("seqio", "tensorflow", "tensorflow-datasets", "tensorflow-text", "pyarrow")


@pytest.fixture(scope="session")
def tiny_stories():
    """Source of a TFDS builder, `tiny_stories:1.0.0`, of the stories in TEXTS."""
    return """
import tensorflow_datasets as tfds

class TinyStories(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"story": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, text in enumerate(TEXTS):
            yield number, {"story": text}
"""


@pytest.fixture(scope="session")
def one_update():
    """one_update(stage, batch, mesh_config, **how): the state on its mesh after a step; metrics."""
    # imported here: JAX must not start before the lines above
    from speechlm_jax.sharding import make_mesh, to_global
    from speechlm_jax.train.optimizer import OptimizerConfig, make_optimizer
    from speechlm_jax.train.state import init_state, make_layout
    from speechlm_jax.train.step import make_train_step

    def update(stage, batch, mesh_config, **how):
        config = OptimizerConfig(peak=1e-3, warmup_steps=0, schedule="constant")
        optimizer = make_optimizer(config, total_steps=2, axes=stage.axes)
        devices = math.prod(dataclasses.astuple(mesh_config))
        mesh = make_mesh(mesh_config, devices=jax.devices()[:devices])
        layout = make_layout(stage, optimizer, mesh=mesh)
        with jax.set_mesh(mesh):
            state = init_state(stage, optimizer, layout, seed=0)
            step = make_train_step(stage, optimizer, layout, **how)
            return step(state, to_global(batch, mesh=mesh), jax.random.key(1))

    return update


@pytest.fixture(scope="session")
def draw():
    """draw(functional, seed=0): a module's parameters, from numpy.

    JAX would draw them from the same kind of distribution, after seconds of compiling.
    """

    def leaf(random, path, shape):
        if path[-1].key in ("scale", "bias"):
            return (path[-1].key == "scale") + 0.1 * random.normal(size=shape.shape)
        fan_in = shape.shape[-2 if path[-1].key == "kernel" else -1]
        return random.normal(size=shape.shape) * fan_in**-0.5

    def params(functional, seed=0):
        random = np.random.default_rng(seed)
        return jax.tree_util.tree_map_with_path(
            lambda path, shape: jax.numpy.asarray(leaf(random, path, shape), shape.dtype),
            functional.shapes,
        )

    return params


@pytest.fixture(scope="session")
def write_features():
    """write_features(folder, rows, frames): a feature folder; row i has frames[i] of noise."""
    from speechlm_jax import artifacts
    from speechlm_jax.audio.mel_config import MelConfig
    from speechlm_jax.audio.recordings import FEATURES_KIND, MELS, ROWS, Features

    def write(folder, rows, frames):
        stops = np.cumsum(frames).tolist()
        folder.mkdir()
        noise = np.random.default_rng(0).normal(size=(stops[-1], 80))
        np.save(folder / MELS, noise.astype(np.float16))
        spans = zip(rows, frames, stops, strict=True)
        rows = [{**row, "start": stop - long, "stop": stop} for row, long, stop in spans]
        artifacts.write_jsonl(folder / ROWS, rows)
        made = {"inputs": {}, "config": {"mel": MelConfig()}, "files": [MELS, ROWS]}
        artifacts.write_manifest(folder, FEATURES_KIND, **made)
        return Features(folder)

    return write


class Pail(AsyncFileSystem):
    """A stand-in for a bucket: files of `folder`, by `pail://name`.

    It counts what is asked for; `wrong` is called with each request and may raise. Tests of the
    real protocol are in data/test_google_bucket.py.
    """

    protocol = "pail"
    folder = Path()
    latency = 0.0
    requests: list[tuple[str, int | None, int | None]] = []
    most_at_once = 0
    _at_once = 0

    @staticmethod
    def wrong(path, start, end):
        """Nothing is, until a test says so."""

    async def _cat_file(self, path, start=None, end=None, **options):
        cls, path = type(self), self._strip_protocol(path)
        cls.requests.append((path, start, end))
        cls._at_once += 1
        cls.most_at_once = max(cls.most_at_once, cls._at_once)
        try:
            await asyncio.sleep(self.latency)
            cls.wrong(path, start, end)
            with open(self.folder / path, "rb") as file:
                file.seek(start or 0)
                return file.read() if end is None else file.read(end - (start or 0))
        finally:
            cls._at_once -= 1

    async def _ls(self, path, detail=True, **options):
        path = self._strip_protocol(path)
        self.wrong(path, None, None)
        found = sorted((self.folder / path).iterdir())
        return [{"name": f"{path}/{f.name}", "size": f.stat().st_size} for f in found]


@pytest.fixture
def pail(tmp_path, monkeypatch):
    """The stand-in, empty; what is written to `pail.folder` is in it. No waits between tries."""
    # imported here: JAX must not start before the lines above
    from speechlm_jax import bucket

    fresh = type("Fresh", (Pail,), {"folder": tmp_path / "pail", "requests": []})
    fresh.folder.mkdir()
    get_loop()  # fsspec's own thread, once a process: tests count the threads that are ours
    fsspec.register_implementation("pail", fresh, clobber=True)
    bucket._file_system.cache_clear()
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", (0.0, 0.0))
    yield fresh
    bucket._file_system.cache_clear()


@pytest.fixture(scope="session")
def hiccup():
    """hiccup(error, times): what is wrong with a bucket at first."""

    def make(error, times):
        left = itertools.count(times, -1)

        def wrong(path, start, end):
            if next(left) > 0:
                raise error

        return staticmethod(wrong)

    return make
