"""What a connection, a gigabyte and a round trip cost: HAProxy's loop and sniproxy side by side. See README.md.

`fronts` says what is compared, `scenarios` what each has to do, `load` does it, `backend` stands behind, `processes`
starts and measures, `report` prints. `micro` times single functions.
"""
