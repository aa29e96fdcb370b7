"""The data plane: raw sockets on an epoll of its own, nested in the event loop.

Read `connection` first: it is the story of one connection from accept to close. `peer` is one of the two sockets of
a pair and moves the bytes. `engine` polls and dispatches, `listener` accepts, `deadlines` is the coarse clock,
`backend` holds the servers that are dialled, `statistics` the plain integers behind the metrics.

No task, future, transport or timer object exists per connection: that is what makes Python cheap enough here.
"""
