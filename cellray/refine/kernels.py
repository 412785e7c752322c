"""Compiled loops of the solver, over blocks of ``WIDTH`` classes: one graph traversal serves all of them.

Contract: arrays of scores are (n, ``WIDTH``), C-contiguous, float32 or float64; the graph is CSR with float32 weights,
``inverse`` is one over the system's diagonal. Inner products are summed in the arrays' precision over ``_RUN`` cells
and in float64 from there on. One thread, so results do not depend on timing.
"""

import numpy as np
from numba import njit

WIDTH = 32
_RUN = 128


@njit(nogil=True, inline="always")
def _gather(indptr, indices, weights, x, i, gathered):
    """Set ``gathered`` to the weighted sum of the rows of ``x`` that cell i is joined to."""
    gathered[:] = 0
    e = indptr[i]
    # Four neighbours at a time: the sums are then loaded and stored a quarter as often.
    while e + 4 <= indptr[i + 1]:
        w0, w1, w2, w3 = weights[e], weights[e + 1], weights[e + 2], weights[e + 3]
        r0, r1, r2, r3 = x[indices[e]], x[indices[e + 1]], x[indices[e + 2]], x[indices[e + 3]]
        for j in range(WIDTH):
            gathered[j] += w0 * r0[j] + w1 * r1[j] + w2 * r2[j] + w3 * r3[j]
        e += 4
    while e < indptr[i + 1]:
        weight = weights[e]
        row = x[indices[e]]
        for j in range(WIDTH):
            gathered[j] += weight * row[j]
        e += 1


@njit(fastmath=True, nogil=True, cache=True)
def multiply(indptr, indices, weights, diagonal, lam, p, q, dots):
    """Set ``q = diagonal * p - lam * A p`` and ``dots`` to the inner products of the columns of p and q."""
    n = len(diagonal)
    gathered = np.zeros(WIDTH, p.dtype)
    part = np.zeros(WIDTH, p.dtype)
    dots[:] = 0
    for i in range(n):
        _gather(indptr, indices, weights, p, i, gathered)
        for j in range(WIDTH):
            value = diagonal[i] * p[i, j] - lam * gathered[j]
            q[i, j] = value
            part[j] += value * p[i, j]
        if i % _RUN == _RUN - 1 or i == n - 1:
            for j in range(WIDTH):
                dots[j] += part[j]
                part[j] = 0


@njit(fastmath=True, nogil=True, cache=True)
def advance(step, inverse, p, q, x, r, rz, rr):
    """Move ``x`` by ``step * p`` and ``r`` by ``-step * q``; set ``rz`` to r' (inverse * r) and ``rr`` to r' r."""
    n = len(inverse)
    part_rz = np.zeros(WIDTH, p.dtype)
    part_rr = np.zeros(WIDTH, p.dtype)
    rz[:] = 0
    rr[:] = 0
    for i in range(n):
        for j in range(WIDTH):
            x[i, j] += step[j] * p[i, j]
            value = r[i, j] - step[j] * q[i, j]
            r[i, j] = value
            part_rr[j] += value * value
            part_rz[j] += value * value * inverse[i]
        if i % _RUN == _RUN - 1 or i == n - 1:
            for j in range(WIDTH):
                rz[j] += part_rz[j]
                rr[j] += part_rr[j]
                part_rz[j] = 0
                part_rr[j] = 0


@njit(fastmath=True, nogil=True, cache=True)
def turn(beta, inverse, r, p):
    """Set the next direction, ``p = inverse * r + beta * p``."""
    for i in range(len(inverse)):
        for j in range(WIDTH):
            p[i, j] = r[i, j] * inverse[i] + beta[j] * p[i, j]


@njit(nogil=True, cache=True)
def remainder(indptr, indices, weights, diagonal, lam, b, x, r, squares):
    """Set ``r = b - (diagonal * x - lam * A x)`` with float64 arithmetic, and ``squares`` to its squared norms."""
    gathered = np.zeros(WIDTH, np.float64)
    squares[:] = 0
    for i in range(len(diagonal)):
        _gather(indptr, indices, weights, x, i, gathered)
        for j in range(WIDTH):
            value = b[i, j] - diagonal[i] * x[i, j] + lam * gathered[j]
            r[i, j] = value
            squares[j] += value * value
