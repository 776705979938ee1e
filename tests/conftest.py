"""Before JAX starts: four CPU devices, to test sharding on a laptop, and a compilation cache."""

import atexit
import logging
import os
import shutil
import tempfile

import jax
import numpy as np
import pytest

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4".strip()
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# What is compiled runs for milliseconds: most of XLA's optimisations cost more than they give.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
jax.config.update(
    "jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "true"
)

# Many tests build the same small model anew, here or in a process of their own; each is compiled
# once a session.  A path that the caller has set stays.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="speechlm_test_cache_")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"
    # a plugin of pytest may have imported JAX already, which then has not seen the environment
    jax.config.update("jax_compilation_cache_dir", _cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """The command line sends logs to standard error; the next test wants pytest's handlers back."""
    root, ours = logging.getLogger(), logging.getLogger("speechlm")
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:], root.level, ours.level = before


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
        shapes = jax.eval_shape(functional.init, jax.random.key(0))[0]
        return jax.tree_util.tree_map_with_path(
            lambda path, shape: jax.numpy.asarray(leaf(random, path, shape), shape.dtype), shapes
        )

    return params
