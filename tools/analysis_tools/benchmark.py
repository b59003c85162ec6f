#!/usr/bin/env python
"""Measure throughput, latency and peak memory of a model."""

from coc_mm.cli.benchmark import main

if __name__ == '__main__':
    raise SystemExit(main())
