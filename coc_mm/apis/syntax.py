"""Configs are Python, and early releases of Python 3.11 parse it in one thread at a time."""

import threading

__all__ = ['PARSING']

#: Hold this while configs are parsed. Those releases count the depth of a syntax tree in one
#: place for all threads, and end one of two that meet with ``SystemError: AST constructor
#: recursion depth mismatch`` (python/cpython#106905).
PARSING = threading.RLock()
