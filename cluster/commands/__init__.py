"""The commands of `baleen`, one file each."""
