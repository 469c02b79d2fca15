"""Between our own objects and the generated messages of `baleen.v1`, for all that speak gRPC."""
