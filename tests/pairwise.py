"""Fewer cases than a cross product, in which any two values still meet."""

import itertools


def cases(*factors):
    """A value of each factor a case; any two of two factors share a case."""

    def meetings(case):
        return set(itertools.combinations(enumerate(case), 2))

    every = list(itertools.product(*factors))
    left = set().union(*map(meetings, every))
    while left:
        best = max(every, key=lambda case: len(meetings(case) & left))
        left -= meetings(best)
        yield best
