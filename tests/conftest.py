"""Settings for every test: one compute thread a process, since many processes share few cores."""

import os
import signal

# before torch is imported, here and in every process that a test starts: OpenMP threads that outnumber the cores
# wait for each other by spinning
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

# no time limit for an example: the machine may be busy, and timing belongs in benchmarks
settings.register_profile("house", settings.default, deadline=None)
settings.load_profile("house")

# a shell that starts the tests in the background has them ignore it, and all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
