"""Time of each operation against its floor and against a baseline, after its result was checked."""
