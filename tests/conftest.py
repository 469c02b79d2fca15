"""Settings for every test: one compute thread a process, since many processes share few cores."""

import os

# before torch is imported, here and in every process that a test starts: OpenMP threads that outnumber the cores
# wait for each other by spinning
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

# no time limit for an example: the machine may be busy, and timing belongs in benchmarks
settings.register_profile("house", settings.default, deadline=None)
settings.load_profile("house")
