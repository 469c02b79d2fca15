"""From logits to token ids: noise, penalties, filters, the choice, log-probabilities."""
