"""Who may ask: API keys, where they are kept, and the guard that asks every request for one.

key.py         one key: what it allows, and how it is recognised without being stored
key_file.py    keys in a file, which `baton keys` writes
key_store.py   keys in Redis
ring.py        the keys that this gateway knows, kept current while it runs
guard.py       the layer of the HTTP side that lets requests through
"""
