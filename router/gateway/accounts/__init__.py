"""Who may use the gateway, how fast, and what it costs them."""
