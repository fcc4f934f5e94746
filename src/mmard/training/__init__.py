"""Training: one loop that knows no method's name."""
