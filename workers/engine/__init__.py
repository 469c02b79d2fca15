"""Requests, scheduling, sampling and the step loop."""
