"""A Jupyter workbench for arbitrage between crypto exchanges, with a bot that can be deployed

Modules:

- `arbwork.desk.rehearse`: One line in a notebook: the API is there, the screen is open, and Start starts something.
- `arbwork.desk.widgets`: A session on one screen: what you want of it, what the market offers, what it did.
- `arbwork.live`: The bot: one process that trades a signed manifest, and can be killed at any moment.
- `arbwork.research.evidence`: How much of a good backtest is luck, when it is the best of many.
- `arbwork.research.parity`: Did the session decide what its journal says it should have, and did it earn what the model says it could have?
- `arbwork.research.promote`: What a study must show before its parameters may trade, and the signed page that says it did.
- `arbwork.research.report`: A study and a session, as a person reads them: figures that need no network, and words that carry their numbers.
- `arbwork.serve.api`: See and steer a running session from elsewhere, through the journal alone.
- `arbwork.serve.auth`: People with a password and a session, programs with a key and a scope; nobody by default.
- `arbwork.serve.client`: The control API as methods, for the workbench, the demo and scripts.
- `arbwork.serve.vault`: Exchange keys at rest, encrypted; the bot opens them, nobody else does.
- `arbwork.trade.core`: One reducer: everything it is given is in the journal, so everything it did can be done again.
- `arbwork.trade.ledger`: Every fill booked twice over, once for ever, to the last digit.
- `arbwork.trade.order`: Two tables say everything that can happen to an order and to the trade it belongs to.
- `arbwork.trade.reconcile`: What the journal says is laid beside what the venue says, before the first trade and after the last.
- `arbwork.trade.runner`: Journals what the core is given, does what the core says, and ends with the venues and the ledger agreeing.
- `arbwork.trade.workers`: One for each leg: it waits until the intent is safe, sends, and tells what it heard."""

__version__ = "0.1.0"
