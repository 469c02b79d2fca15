"""OpenAI's Responses dialect: items in, items out. Nothing is stored between requests."""
