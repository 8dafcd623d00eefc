"A book as one would first write it, with dictionaries: what `feed.book.Book` is compared with."
from copy import copy

from arbwork.feed.events import CROSSED, EMPTY, INVALID, LEVELS, VALID
from arbwork.market import DataError

INF = float('inf')


class Model:
    "The same words as `Book`, the plainest way."
    def __init__(self, venue, instrument, follows, cut_at=0, depth=0, checksum=None):
        self.where, self.follows, self.cut_at, self.depth, self.checksum = f'{venue} {instrument}', follows, cut_at, depth, checksum
        self.duplicates = self.early = self.gaps = 0
        self.reset()

    def reset(self):
        self.sides, self.edges = ({}, {}), [None, None]
        self.state, self.why, self.seq, self.joined_seq, self.ts_venue_ns = EMPTY, '', -1, -1, 0

    def copy(self):
        new = copy(self)
        new.sides, new.edges = tuple(map(dict, self.sides)), list(self.edges)
        return new

    def keys(self, side):
        "Prices, best first."
        return sorted(self.sides[side], reverse=not side)

    @property
    def bids(self): return [(px, self.sides[0][px]) for px in self.keys(0)]
    @property
    def asks(self): return [(px, self.sides[1][px]) for px in self.keys(1)]
    @property
    def thin(self): return any(edge is not None and 4*len(side) < self.cut_at for side, edge in zip(self.sides, self.edges))

    def drop(self, why):
        self.state, self.why = INVALID, f'{self.where}: {why}'
        return self.state

    def apply(self, u):
        old = u.last_seq <= self.seq and not u.ts_venue_ns > self.ts_venue_ns > 0
        if u.snapshot:
            if (old or 0 < u.ts_venue_ns < self.ts_venue_ns) and self.state in (VALID, CROSSED) and self.ts_venue_ns:
                self.duplicates += 1
                return self.state
            self.sides, self.edges = ({}, {}), [None, None]
        elif self.state in (EMPTY, INVALID): return self.state
        elif old:
            if u.last_seq <= self.joined_seq: self.early += 1
            else: self.duplicates += 1
            return self.state
        elif not self.follows(self.seq, u):
            self.gaps += 1
            return self.drop(f'gap at seq {self.seq}, found {u.first_seq} to {u.last_seq}, wanted {self.seq + 1}')
        return self.take(u)

    def take(self, u):
        for side, levels in enumerate((u.bids, u.asks)):
            for px, qty in levels:
                if not (0 < px < INF and 0 <= qty < INF):
                    self.drop(f'found level {px} x {qty}, wanted a finite price above 0 and a quantity of at least 0 at seq {u.last_seq}')
                    raise DataError(self.why)
                edge = self.edges[side]
                if edge is not None and (px < edge if side == 0 else px > edge): continue
                if qty: self.sides[side][px] = qty
                else: self.sides[side].pop(px, None)
            if u.snapshot and self.cut_at and len(self.sides[side]) >= self.cut_at: self.edges[side] = self.keys(side)[-1]
        self.seq = u.last_seq
        if u.snapshot: self.joined_seq = u.last_seq
        if u.snapshot or u.ts_venue_ns: self.ts_venue_ns = u.ts_venue_ns
        if self.depth:
            for side in (0, 1):
                for px in self.keys(side)[self.depth:]: del self.sides[side][px]
        if self.checksum is not None and u.checksum is not None:
            found = self.checksum(*([self.sides[side][px] for px in self.keys(side)[:LEVELS]] for side in (0, 1)))
            if found != u.checksum:
                self.gaps += 1
                return self.drop(f'gap at seq {u.last_seq}, found checksum {found}, wanted {u.checksum}')
        return self.judge()

    def judge(self):
        for side, name in enumerate(('bids', 'asks')):
            if self.edges[side] is not None and len(self.sides[side]) < LEVELS:
                return self.drop(f'{name} walked out of the snapshot at seq {self.seq}: found {len(self.sides[side])} levels, wanted {LEVELS}')
        bid, ask = max(self.sides[0], default=0), min(self.sides[1], default=INF)
        if bid >= ask: self.state, self.why = CROSSED, f'{self.where}: crossed book, bid {bid} >= ask {ask} at seq {self.seq}'
        else: self.state, self.why = VALID, ''
        return self.state


FIELDS = ('state', 'why', 'seq', 'joined_seq', 'ts_venue_ns', 'duplicates', 'early', 'gaps')


def same(book, model):
    "Whether a book says in everything what the model says; after a level that is none, only that it may not be believed."
    if any(getattr(book, x) != getattr(model, x) for x in FIELDS): return False
    if model.state == VALID and book.thin != model.thin: return False
    return 'found level' in model.why or (book.bids == model.bids and book.asks == model.asks)
