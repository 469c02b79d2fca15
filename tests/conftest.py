"""Settings for every test: one compute thread a process, since many processes share few cores."""

import os

# before torch is imported, here and in every process that a test starts: OpenMP threads that outnumber the cores
# wait for each other by spinning
os.environ["OMP_NUM_THREADS"] = "1"
