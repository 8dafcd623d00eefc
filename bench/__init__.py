"""Speed beside peers: every figure is a ratio of lanes that took turns in one run."""
