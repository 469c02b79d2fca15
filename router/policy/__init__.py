"""Which ranks serve a request: pure functions over a snapshot, without clock, wire or torch."""
