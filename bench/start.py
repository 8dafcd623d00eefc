"""What a start costs after a session that was killed with 10,000 trades behind it: a process from its first instruction until its core knows all that the session knew.

The session trades as a live one does, every trade with its rows, decision, intents, words of the venue, fills and report in the journal, and folds itself on the way. One child
takes it up from its folds and one lives it again from the first row; both import the whole bot and have its kernels loaded. What the venues take to answer is not in it.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import msgspec
import numpy as np

TRADES = 10_000
SESSION, FOLDED, WHOLE = 'past', 'taken up from folds', 'lived again from the first row'


def a_past(path: str, trades: int) -> None:
    from arbwork.decide.contract import Universe, make_params
    from arbwork.feed.events import BOOK, VALID
    from arbwork.market import Listing
    from arbwork.store.journal import open_journal
    from arbwork.trade.core import MADE, STEP, Core, Sent, SessionStart, VenueFill, VenueOrder
    from arbwork.trade.fold import Folder
    from arbwork.trade.order import Place
    listings = [Listing(v, 'LINK-USDT', 'LINKUSDT', *map(Decimal, ('0.01', '0.01', '0.01', '5'))) for v in ('binance', 'bybit')]
    wishes = make_params(dict(cooldown_s=0, trades_per_hour=10**6, max_notional=270, max_exposure=10**6, max_loss_day=10**8, max_drawdown=1))
    core = Core(SessionStart(SESSION, 'sim', 'cross', wishes, Universe(listings, {x.venue: (10., 10.) for x in listings}),
                             {x.venue: {'LINK': Decimal(10**8), 'USDT': Decimal(10**10)} for x in listings}, 10**18))
    journal, step, where, pack, folder = open_journal(f'sqlite:///{path}'), np.zeros(1, STEP), f'session/{SESSION}', msgspec.msgpack.encode, Folder(core)
    books = {}
    for slot, px in ((0, 27.), (1, 27.), (1, 27.1)):
        x = books[slot, px] = np.zeros(1, BOOK)[0]
        x['slot'], x['state'], x['bid_qty'], x['ask_qty'] = slot, VALID, 500, 500
        x['bid_px'], x['ask_px'] = px - 0.01 - 0.01*np.arange(len(x['bid_px'])), px + 0.01*np.arange(len(x['ask_px']))

    def put(made, t):
        for a in made:
            if type(a) in MADE: journal.append(where, MADE[type(a)], pack(a), ts_ns=t)
        return made

    def book(t, slot, px):
        row = books[slot, px]
        row['ts_recv_ns'] = t
        code, intents = core.row(t, row)
        step[0]['now_ns'], step[0]['row'], step[0]['code'], step[0]['n'] = t, row, code, len(intents)
        journal.append_rows(where, 'steps', step, t)
        return put(core.take(), t)

    def given(t, kind, body):
        journal.append(where, kind, pack(body), ts_ns=t)
        put(core.give(kind, t, body), t)
        folder.heard(kind, body)

    journal.append(where, 'start', pack(core.start), ts_ns=core.start.started_ns)
    for k in range(trades):
        t = 10**18 + (k + 1)*10**8
        for p in book(t, 0, 27.) + book(t, 1, 27.1):
            if not isinstance(p, Place): continue
            o = p.order
            given(t, 'sent', Sent(o.client_id))
            given(t, 'order', VenueOrder(o.client_id, f'{k}', o.instrument, o.side, 'filled', o.qty, o.qty, t, venue=p.venue))
            given(t, 'fill', VenueFill(o.client_id, f'{k}', o.client_id, o.instrument, o.side, o.px, o.qty, Decimal('0.001'), 'USDT', False, t, p.venue))
        book(t + 10**7, 1, 27.)
        if not k % 25: journal.flush()
        folder.step(journal, where, t)
    journal.close()


def peak_mb() -> int:
    "Of this process alone: what `getrusage` says begins with the memory of the process that started it."
    with open('/proc/self/status') as f: return next(int(line.split()[1]) for line in f if line.startswith('VmHWM'))//1024


def child(path: str, how: str) -> None:
    "Says how many trades and fills it knows, and its resident memory in MB at most."
    from arbwork import live
    from arbwork.store.journal import open_journal
    from arbwork.trade.core import replay
    from arbwork.trade.fold import resume
    from arbwork.trade.reconcile import session_entries
    journal = open_journal(f'sqlite:///{path}')
    past = resume(journal, SESSION) if how == FOLDED else replay(session_entries(journal, SESSION))
    live.warm(past.core.start)
    print(past.core.trade_count, past.core.ledger.fills, len(past.core.open), repr(past.first), peak_mb())


@contextmanager
def start():
    "A start with 10,000 journalled trades to recover, from the folds of the session and without them; wall seconds, the baseline is the whole way."
    n, rounds, memory = (200, 1, {}) if os.environ.get('BENCH_QUICK') else (TRADES, 3, {})
    with tempfile.TemporaryDirectory(prefix='bench-start-') as folder:
        path = f'{folder}/journal.db'
        a_past(path, n)

        def run(how):
            began = time.perf_counter()
            said = subprocess.run([sys.executable, '-m', 'bench.start', path, how], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True).stdout.split()
            took = time.perf_counter() - began
            if said[:4] != [str(n), str(2*n), '0', "''"]: raise RuntimeError(f'{how}: found {said}, wanted {n} trades and {2*n} fills')
            memory[how] = int(said[4])
            return took
        yield {how: (lambda how=how: run(how), 1) for how in (WHOLE, FOLDED)}, 's', 1, WHOLE, rounds
    print(f'resident memory, MB: {memory}', file=sys.stderr)


BENCHES = {'start': start}

if __name__ == '__main__': child(*sys.argv[1:])
