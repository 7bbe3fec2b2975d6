"""The cluster-wide prefix index and the worker registry: workers publish, routers mirror. Redis is the meeting point.

records.py       what is written: namespaces, worker records, block events
redis_store.py   what is kept in Redis, and how; its Lua scripts are in lua/
publisher.py     worker side: block events, batched and numbered
registry.py      both sides of the worker registry: heartbeats, and a watch
mirror.py        router side: which worker holds which blocks, in memory
sync.py          keeps a mirror up to date
"""
