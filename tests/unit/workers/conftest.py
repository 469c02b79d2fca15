"""Where tests of the engine on a device run, as kernels' tests do."""

from tests.unit.kernels.conftest import device

__all__ = ["device"]
