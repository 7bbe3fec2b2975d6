"""`baton trace-handoff`: one request through a running system, and what happened when while its KV cache moved.

main      the command
system    a `baton up` for the occasion, where no running system is named
collect   sends the request, asks both agents, brings their clocks together
timeline  one handoff on one time axis; pure
report    the figures, in words
drawing   the picture as plain shapes; pure
page      the shapes as one HTML file
picture   the shapes as PNG or SVG, by matplotlib
"""
