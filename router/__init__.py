"""The gRPC router and its policy; never torch, never ray."""
