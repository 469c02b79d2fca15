"""What tests of kernels need: a repaired interpreter, bounds, poisoned memory, the ahead-of-time gate."""
