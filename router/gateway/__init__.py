"""The HTTP gateway: dialects of clients on one side, the gRPC router on the other."""
