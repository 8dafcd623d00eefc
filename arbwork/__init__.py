"""A Jupyter workbench for arbitrage between crypto exchanges, with a bot that can be deployed

Modules:

- `arbwork.cli`: Every room has its command; each answers in words or, with `--json`, to a program, and ends with an exit code that means something.
- `arbwork.clock`: Time is an argument. Nothing below `live` reads the wall's.
- `arbwork.decide.contract`: What a strategy is given, what it gives back, and the words for *no*.
- `arbwork.decide.cross`: Buy where it is cheap, sell where it is dear, both at once, both as taker.
- `arbwork.decide.edge`: What is left after both legs pay their fees, at the touch and through the depth.
- `arbwork.decide.fill`: What an order gets from a book that others, and we ourselves, have already eaten from.
- `arbwork.decide.risk`: What may be done at all, and when it all stops.
- `arbwork.desk.demo`: One command from recorded books to a trade, through the parts that also trade real money.
- `arbwork.desk.rehearse`: One line in a notebook: the API is there, the screen is open, and Start starts something.
- `arbwork.desk.widgets`: A session on one screen: what you want of it, what the market offers, what it did.
- `arbwork.feed.binance`: Binance spot, from bytes to events and from orders to bytes.
- `arbwork.feed.board`: The latest books, where every process can see them and none can see half of one.
- `arbwork.feed.book`: A book is right, or it says why it may not be believed.
- `arbwork.feed.bybit`: Bybit v5 spot, from bytes to events and from orders to bytes.
- `arbwork.feed.codec`: What every venue's codec has in common: keys that do not print, requests that are values, names in both directions.
- `arbwork.feed.events`: The few values that leave a venue's codec, and the one row in which a book travels through arbwork.
- `arbwork.feed.kraken`: Kraken spot, from bytes to events and from orders to bytes.
- `arbwork.feed.okx`: OKX v5 spot, from bytes to events and from orders to bytes.
- `arbwork.feed.wire`: Sockets that come back by themselves, books that are never silently wrong, orders whose fate is never guessed.
- `arbwork.live`: The bot: one process that trades a signed manifest, and can be killed at any moment.
- `arbwork.market`: The words that everything else is written in: venue, instrument, money, and what can be wrong.
- `arbwork.research.backtest`: The live kernel over recorded events, filled at the book as it stands when the order gets there.
- `arbwork.research.evidence`: How much of a good backtest is luck, when it is the best of many.
- `arbwork.research.parity`: Did the session decide what its journal says it should have, and did it earn what the model says it could have?
- `arbwork.research.promote`: What a study must show before its parameters may trade, and the signed page that says it did.
- `arbwork.research.report`: A study and a session, as a person reads them: figures that need no network, and words that carry their numbers.
- `arbwork.research.sweep`: Many parameter sets through the live kernel, and one vectorbt Portfolio at the end.
- `arbwork.research.trials`: Everything that was ever tried, counted once, so that the winner can be charged for all of it.
- `arbwork.serve.api`: See and steer a running session from elsewhere, through the journal alone.
- `arbwork.serve.auth`: People with a password and a session, programs with a key and a scope; nobody by default.
- `arbwork.serve.client`: The control API as methods, for the workbench, the demo and scripts.
- `arbwork.serve.vault`: Exchange keys at rest, encrypted; the bot opens them, nobody else does.
- `arbwork.settings`: What the person decides, read once, checked at the door, frozen.
- `arbwork.sim.binance`: The spot REST API v3, the market streams and the WebSocket API v3, as their clients expect them.
- `arbwork.sim.bybit`: The v5 REST API for spot, the public, the private and the trade socket, as their clients expect them.
- `arbwork.sim.engine`: One venue's books, orders and accounts, in exact numbers and without a socket.
- `arbwork.sim.inproc`: The simulated venues without a socket: a test asks and is answered, at a time that it says.
- `arbwork.sim.kraken`: REST under `/0` and version 2 of the socket, with checksums, tokens and a nonce, as their clients expect them.
- `arbwork.sim.okx`: The v5 REST API for spot, the public and the private socket, as their clients expect them.
- `arbwork.sim.scenarios`: What the simulated venues show: two hours that happened, and days that could.
- `arbwork.sim.server`: Each venue on a port of its own, in a process of its own, on a clock that may run fast.
- `arbwork.sim.wire`: What all simulated venues share between the engine and the sockets: who listens to what, who may do what, and what is made to go wrong.
- `arbwork.store.collect`: A worker a venue hears it; a recorder writes it down; nothing is lost between them.
- `arbwork.store.journal`: What was acknowledged is kept, whatever happens next.
- `arbwork.store.journal_nats`: The same journal for several machines, in JetStream.
- `arbwork.store.journal_redis`: The same journal for several machines, in the Redis that is already there.
- `arbwork.store.quality`: Which rows may be believed, and how much of a recording may not.
- `arbwork.store.ticks`: Every book that was heard, once, in order, and as it was on the day it was studied.
- `arbwork.trade.core`: One reducer: everything it is given is in the journal, so everything it did can be done again.
- `arbwork.trade.ledger`: Every fill booked twice over, once for ever, to the last digit.
- `arbwork.trade.order`: Two tables say everything that can happen to an order and to the trade it belongs to.
- `arbwork.trade.reconcile`: What the journal says is laid beside what the venue says, before the first trade and after the last.
- `arbwork.trade.runner`: Journals what the core is given, does what the core says, and ends with the venues and the ledger agreeing.
- `arbwork.trade.workers`: One for each leg: it waits until the intent is safe, sends, and tells what it heard."""

__version__ = "0.1.0"
