"""A Jupyter workbench for arbitrage between crypto exchanges, with a bot that can be deployed

Modules:

- `arbwork.research.evidence`: How much of a good backtest is luck, when it is the best of many."""

__version__ = "0.1.0"
