"""The command line and the placement of groups; the only room that may import ray."""
