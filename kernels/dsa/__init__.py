"""DeepSeek Sparse Attention: indexer scores, top-k, attention."""
