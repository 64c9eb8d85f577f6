"""The benchmark: this proxy and its peers, side by side, priced by the kernel's own accounting.

`python -m benchmarks` runs it; docs/benchmark.md says what is measured and what is not. The parts that must not be the
bottleneck, the upstream and the load, are C below `native/`; the rest only starts, reads and reports.
"""
