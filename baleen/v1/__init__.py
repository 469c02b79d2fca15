"""Generated gRPC code: messages and services of proto/baleen/v1."""
