"""Between text and token ids: tokenizer, detokenizer, stop strings. The engine below speaks token ids alone."""
