"""The event store: a log of events in PostgreSQL, appended in batches, read without gaps.

`store.EventStore` is what other rooms open. `writer` appends, `reader` reads, `codec` turns events into stored bytes
and back, `wire` turns a batch into one statement's parameters.
"""
