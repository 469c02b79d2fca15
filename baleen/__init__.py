"""The vocabulary that every part shares; imports nothing of ours and nothing heavy."""
