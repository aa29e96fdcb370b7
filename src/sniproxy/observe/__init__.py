"""What people and Prometheus see: the log and the metrics.

`access_log` writes the line of each connection, `metrics` turns counters into what Prometheus reads. Both are given
values and know nothing of the parts that made them.
"""
