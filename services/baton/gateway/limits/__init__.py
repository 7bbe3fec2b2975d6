"""Limits of API keys: requests and tokens per minute, requests at once, tokens per month.

standing.py       where a key stands after a question, and the errors that come of it
store.py          what keeps count, whoever it is
memory_store.py   counts of this process alone
redis_store.py    counts of all gateways together; its script is limits.lua
limiter.py        one request's way through the limits, and what happens while Redis is away
outage.py         what to do while Redis is away
headers.py        the standing as each API's headers say it
"""
