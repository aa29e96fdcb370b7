"""A front proxy for HAProxy: routes TLS connections by server name and hands them on untouched.

Where to begin: `relay/connection.py` is the story of one connection, `app/proxy.py` that of the program,
`policy/routing.py` the rules, `config/` the file. The layers, higher ones on top:

    cli · app · config · relay | acme | haproxy | http | observe · policy · wire · model, errors
"""

from importlib.metadata import version

__version__ = version("sniproxy")
