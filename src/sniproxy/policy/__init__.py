"""Values in, decisions out: where a connection goes, whether it may come in, which server takes it.

Read `routing` first. Time and chance come in as arguments; nothing here opens, waits or logs.
"""
