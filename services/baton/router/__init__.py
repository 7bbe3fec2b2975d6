"""The router: places requests on workers, and carries each to its end over every failure that leaves a worker alive.

It owns the total deadline of a request, its attempts and the order of its tokens. It knows no model, no tokenizer, no
HTTP, and keeps nothing that a client cannot get back by sending the request again.
"""
