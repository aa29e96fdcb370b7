"""Small HTTP/1.1 servers on h11: `server` speaks the protocol, `admin` and `public` say what is where.

Two tables on two listeners, so that nothing of the admin side can be reached from port 80.
"""
