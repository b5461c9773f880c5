"""Eight virtual CPU devices, and the strictness that every test runs under."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling small programs: without LLVM's optimisations it is nearly halved.
for flag in ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"):
    if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " " + flag

import jax  # noqa: E402  (reads the flags)

jax.config.update("jax_numpy_rank_promotion", "raise")
